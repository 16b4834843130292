"""`make faults`: disturb runs, sweeps, evaluations and packing, and count what was lost."""
