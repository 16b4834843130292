"""The schema of a configuration, the targets it may call, and where its files are."""
