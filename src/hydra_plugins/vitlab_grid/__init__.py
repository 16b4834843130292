"""Hydra's sweeper of a grid, as its plugins have to lie."""
