"""What the best checkpoint is chosen by, and what a sweep compares its jobs by."""

from typing import Literal

OBJECTIVES = ("val/acc", "val/acc5", "val/loss")


def direction(metric: str) -> Literal["min", "max"]:
    """Which end of a score's range is the good one."""
    return "min" if "loss" in metric else "max"
