"""Hydra's plugins: the grid sweeper, the Optuna sweeper and the launchers."""
