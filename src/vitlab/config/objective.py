"""The score by which the best checkpoint is chosen and the jobs of a sweep are compared."""

from collections.abc import Iterable
from typing import Literal

SCORES = ("acc", "acc5", "loss", "correct", "count")  # of every evaluation
OBJECTIVES = ("val/acc", "val/acc5", "val/loss")


def objectives(metrics: Iterable[str]) -> list[str]:
    """The possible objectives: those of every run, and `classifier.metrics` of this one."""
    return [*OBJECTIVES, *(f"val/{name}" for name in metrics)]


def direction(metric: str) -> Literal["min", "max"]:
    """Whether lower or higher values of a score are better, by its name."""
    return "min" if "loss" in metric or "error" in metric else "max"
