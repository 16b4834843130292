"""How good a network is: the features of a frozen one, and probes on them."""
