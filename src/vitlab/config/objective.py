"""What the best checkpoint is chosen by, and what a sweep compares its jobs by."""

from collections.abc import Iterable
from typing import Literal

SCORES = ("acc", "acc5", "loss", "correct", "count")  # of every evaluation
OBJECTIVES = ("val/acc", "val/acc5", "val/loss")


def objectives(metrics: Iterable[str]) -> list[str]:
    """The scores to choose by: those of every run, and `classifier.metrics` of this one."""
    return [*OBJECTIVES, *(f"val/{name}" for name in metrics)]


def direction(metric: str) -> Literal["min", "max"]:
    """Which end of a score's range is the good one, by its name."""
    return "min" if "loss" in metric or "error" in metric else "max"
