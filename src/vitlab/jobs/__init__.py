"""Jobs: resolved configurations that become runs."""
