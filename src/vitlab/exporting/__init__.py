"""A trained network as other programs load it: other libraries' files, graphs, and a card that says what it is."""
