"""The good end of a score's range."""

import pytest

from vitlab.config import objective


@pytest.mark.parametrize(("metric", "mode"), [("val/loss", "min"), ("val/acc", "max"), ("val/acc5", "max")])
def test_a_loss_is_to_be_small_and_all_else_large(metric: str, mode: str) -> None:
    assert metric in objective.OBJECTIVES
    assert objective.direction(metric) == mode
