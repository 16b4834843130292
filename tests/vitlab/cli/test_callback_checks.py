"""Callbacks that can't work are reported before the start."""

from collections.abc import Mapping

import pytest

from vitlab.cli.callback_checks import REFUSED, callback_problems, group_problems
from vitlab.config.view import ConfigView

LIGHTNING = "lightning.pytorch.callbacks"


def problems(node: Mapping[str, object], precision: str = "32-true") -> list[str]:
    config = {"callbacks": {"mine": node}, "trainer": {"precision": precision}, "classifier": {"metrics": {"f1": {}}}}
    return list(callback_problems(ConfigView(config, set())))


@pytest.mark.parametrize("kind", [*REFUSED])
def test_callbacks_that_change_batches_rates_or_modules_are_refused(kind: str) -> None:
    (line,) = problems({"_target_": f"{LIGHTNING}.{kind}"})
    assert line.startswith(f"callbacks.mine: {kind} ")
    assert line.endswith("leave callbacks.mine out")


@pytest.mark.parametrize(
    "target",
    [f"{LIGHTNING}.EarlyStopping", f"{LIGHTNING}.ModelCheckpoint", "vitlab.training.checkpoints.BestCheckpoint"],
)
def test_a_score_that_nothing_measures_is_refused(target: str) -> None:
    (line,) = problems({"_target_": target, "monitor": "val/los"})
    assert line.startswith("callbacks.mine.monitor=val/los: no validation measures it; did you mean 'val/loss'")
    for monitor in ("val/acc", "val/f1", "epoch", None):
        assert problems({"_target_": target, "monitor": monitor}) == []


def test_device_stats_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlab.cli.callback_checks.find_spec", lambda name: None)
    (line,) = problems({"_target_": f"{LIGHTNING}.DeviceStatsMonitor"})
    assert "needs psutil, which isn't installed: pip install psutil" in line
    assert problems({"_target_": f"{LIGHTNING}.DeviceStatsMonitor", "cpu_stats": False}) == []


def test_a_callback_of_ones_own_may_monitor_anything() -> None:
    assert problems({"_target_": "vitlab.training.monitor.Monitor", "monitor": "anything"}) == []


def test_a_second_progress_bar_is_refused() -> None:
    bars = {name: {"_target_": f"{LIGHTNING}.{name}"} for name in ("RichProgressBar", "TQDMProgressBar")}
    lines = [*group_problems(ConfigView({"callbacks": bars}, set()))]
    assert lines[-1] == (
        "callbacks.RichProgressBar and callbacks.TQDMProgressBar are progress bars, and a run has one; "
        "set callbacks.RichProgressBar=null"
    )


def test_an_average_of_16_bits_is_refused_unless_it_is_kept_in_float32() -> None:
    average = {"_target_": f"{LIGHTNING}.WeightAveraging"}
    (line,) = problems(average, precision="bf16-true")
    assert line.endswith("use trainer.precision=bf16-mixed")
    assert problems(average, precision="bf16-mixed") == []
    assert problems({"_target_": "vitlab.training.averages.WeightAveraging"}, precision="bf16-true") == []
