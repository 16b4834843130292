"""Find where a configuration spends its time, and where a step stops being finite."""
