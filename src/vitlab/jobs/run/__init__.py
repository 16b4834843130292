"""A job is a resolved configuration."""
