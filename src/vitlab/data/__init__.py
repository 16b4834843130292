"""Data: what images there are, and how they become batches on the training device."""
