"""From a command line to checked settings."""
