"""vitlab's sweepers, where Hydra looks for plugins."""
