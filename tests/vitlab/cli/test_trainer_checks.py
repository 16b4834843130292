"""The rules of the Trainer, its devices and the schedule."""

from collections.abc import Callable

import pytest
import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

import train
from conftest import Configure
from vitlab.cli import checks
from vitlab.cli.trainer_checks import ACCELERATORS, STRATEGIES

Found = Callable[..., list[str]]
CPU = "trainer.accelerator=cpu"


def test_the_names_are_those_that_lightning_registers() -> None:
    assert {*ACCELERATORS} == {*AcceleratorRegistry.available_accelerators(), "auto", "gpu"}
    assert {*STRATEGIES} == {*StrategyRegistry.available_strategies(), "auto"}


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
