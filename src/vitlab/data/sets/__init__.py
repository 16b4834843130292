"""Data sets, one file each: the function that loads it, what is known of it beforehand, and its own checks."""
