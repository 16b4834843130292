"""The rules of the Trainer, its devices and the schedule."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

import train
from conftest import Configure
from vitlab.cli import checks
from vitlab.cli.trainer_checks import (
    ACCELERATORS,
    REFUSED,
    STRATEGIES,
    callback_problems,
    check_samples,
    group_problems,
)
from vitlab.config.schema import ConfigView
from vitlab.training import build

Found = Callable[..., list[str]]
CPU = "trainer.accelerator=cpu"


def test_the_names_are_those_that_lightning_registers() -> None:
    assert {*ACCELERATORS} == {*AcceleratorRegistry.available_accelerators(), "auto", "gpu"}
    assert {*STRATEGIES} == {*StrategyRegistry.available_strategies(), "auto"}


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("limit_train_batches=0.01", "0.01 of the 21 batches of an epoch is none; raise it, or leave it out"),
        ("limit_train_batches=0", "0 of the 21 batches of an epoch is none; raise it, or leave it out"),
        ("val_check_interval=1.5", "1.5 is a share from 0.0 to 1.0; a number of batches has no decimal point"),
        ("limit_val_batches=-0.5", "-0.5 is a share from 0.0 to 1.0; a number of batches has no decimal point"),
        ("val_check_interval=22", "22 is above the 21 batches of an epoch; lower it, or count over epochs with "),
        ("max_time=2h", "2h is no duration; write days:hours:minutes:seconds, such as 00:02:30:00"),
    ],
)
def test_parts_of_an_epoch_and_times_that_mean_nothing_are_reported(found: Found, setting: str, problem: str) -> None:
    (line,) = found(f"++trainer.{setting}")
    assert line.startswith(f"trainer.{setting.partition('=')[0]}={problem}")


@pytest.mark.parametrize(
    ("interval", "batches", "ends"), [("7", 7, "6 or 8"), ("0.5", 21, "20 or 22"), ("1", 1, "2"), ("0.2", 8, "")]
)
def test_a_validation_within_an_accumulated_step_is_reported(
    found: Found, interval: str, batches: int, ends: str
) -> None:
    lines = found(f"++trainer.val_check_interval={interval}", "trainer.accumulate_grad_batches=2")
    why = f"{batches} batches, is within a step of trainer.accumulate_grad_batches=2; use {ends}"
    assert lines == ([f"trainer.val_check_interval={interval}, {why}"] if ends else [])


@pytest.mark.parametrize("setting", ["val_check_interval=0.5", "limit_val_batches=0", "max_time=00:02:30:00"])
def test_parts_of_an_epoch_and_times_that_can_be_are_not(found: Found, setting: str) -> None:
    assert found(f"++trainer.{setting}") == []


def test_devices_are_counted_against_the_gpus_that_are_there(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    # the one thing that can't be had here at will is a machine with two GPUs
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    (line,) = found("trainer.devices=4")
    assert line == "trainer.devices=4: this machine has 2 GPUs; use trainer.devices=2, or trainer.accelerator=cpu"
    assert found("trainer.devices=4", CPU) == []
    assert found("trainer.devices=2") == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert found("trainer.devices=4") == [], "without a GPU, devices are processes on the CPU"


def test_a_cluster_has_other_machines_and_must_be_asked_for_a_number_of_devices(configure: Configure) -> None:
    several = configure("trainer.num_nodes=2", "trainer.devices=4", "batch_size=64")
    assert checks.problems(train.main, several, remote=True) == []
    (problem,) = checks.problems(train.main, configure("trainer.devices=-1"), remote=True)
    assert problem == "trainer.devices=-1: a cluster needs a number of devices; set one"
    (problem,) = checks.problems(train.main, {**several, "max_restarts": 2}, remote=True)
    assert problem == "max_restarts=2 starts one machine's processes again, not 2; use max_restarts=0"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["batch_size=64", "data.drop_last=true"], "batch_size=64 is more than the 50 images to train on"),
        (["batch_size=32", "+trainer.val_check_interval=3"], "trainer.val_check_interval=3 is above the 2 batches"),
        (["trainer.max_epochs=1", "schedule.warmup_steps=9"], "schedule.warmup_steps=9 leaves nothing of the 1 steps"),
    ],
)
def test_what_doesnt_fit_the_loaded_images_is_an_error(configure: Configure, settings: list[str], problem: str) -> None:
    config = configure(CPU, *settings)
    check_samples(config, 1293)
    with pytest.raises(ValueError, match=re.escape(problem)):
        check_samples(config, 50)


def test_a_training_says_so_before_it_builds_the_network(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "build_classifier", pytest.fail)
    config = configure(CPU, "data.max_train_samples=50", "batch_size=64", "data.drop_last=true")
    with pytest.raises(ValueError, match="batch_size=64 is more than the 50 images"):
        train.main.function(**{**config, "run_dir": str(tmp_path)})


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
    monkeypatch.setattr("vitlab.cli.trainer_checks.find_spec", lambda name: None)
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
