"""Mistakes in the settings of a plan are reported with value, knob and remedy."""

import pytest

from vitlab.config.view import ConfigView
from vitlab.diagnostics.checks import plan_problems


@pytest.mark.parametrize("device", ["here", "h100", "NVIDIA A100-SXM4-80GB", "rtx 4090"])
def test_a_known_device_can_be_planned_for(device: str) -> None:
    assert list(plan_problems(ConfigView({"device": device, "trainer": {"precision": "bf16-mixed"}}, set()))) == []


@pytest.mark.parametrize(("device", "precision"), [("abacus", "32-true"), ("v100s", "bf16-mixed"), ("h100", "64-true")])
def test_a_device_of_unknown_speed_is_refused(device: str, precision: str) -> None:
    (line,) = plan_problems(ConfigView({"device": device, "trainer": {"precision": precision}}, set()))
    assert line.startswith(f"device={device}: its FLOPs per second in trainer.precision={precision} are unknown; known")
    assert ", h100|h200|gh200, a100, a40, " in line
