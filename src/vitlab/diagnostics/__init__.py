"""Plan and preview a training, find where it spends its time, and where a step stops being finite."""
