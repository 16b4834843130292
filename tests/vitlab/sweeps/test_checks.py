"""Mistakes in the settings of `sweep.py` are reported with value, knob and remedy."""

from vitlab.config.view import ConfigView
from vitlab.sweeps.checks import sweep_action_problems


def test_a_sweep_that_is_not_named_is_reported() -> None:
    (line,) = sweep_action_problems(ConfigView({"action": "cancel", "sweep": None, "run": None}, set()))
    assert line.startswith("sweep is not set; cancel takes sweep=NAME")
