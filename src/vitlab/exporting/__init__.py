"""A trained network as other programs load it: files and folders of other libraries, graphs, a card that says what it is."""
