"""The good end of a score's range."""

import pytest

from vitlab.config import objective


@pytest.mark.parametrize(("metric", "mode"), [("val/loss", "min"), ("val/acc", "max"), ("val/acc5", "max")])
def test_a_loss_is_to_be_small_and_all_else_large(metric: str, mode: str) -> None:
    assert metric in objective.OBJECTIVES
    assert objective.direction(metric) == mode


def test_own_metrics_are_objectives_whose_names_say_what_is_good() -> None:
    assert objective.objectives(["f1", "calibration_error"])[-2:] == ["val/f1", "val/calibration_error"]
    assert objective.direction("val/f1") == "max"
    assert objective.direction("val/calibration_error") == "min"
