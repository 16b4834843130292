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

ONE_LINE: list[tuple[list[str], str]] = [
    (
        ["trainer=fsdp", "callbacks=ema", CPU],
        "callbacks.ema can't average weights that trainer=fsdp shards over devices",
    ),
    (["trainer.accelerator=cpuu"], "trainer.accelerator=cpuu: there is no such accelerator; did you mean 'cpu'"),
    (["trainer.strategy=dpd"], "trainer.strategy=dpd: there is no such strategy; did you mean 'ddp'"),
    (["trainer.devices=0"], "trainer.devices=0 is not a number of devices; use 1 or more, or -1 for all"),
    (["trainer.devices=two"], "trainer.devices=two is not a number of devices; use 1 or more, auto, or -1 for all"),
    (["trainer.devices=-2"], "trainer.devices=-2 is not a number of devices; use 1 or more, or -1 for all"),
    (["trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches=0 must be at least 1"),
    (["trainer.num_nodes=0"], "trainer.num_nodes=0 must be at least 1"),
    (["trainer.log_every_n_steps=0"], "trainer.log_every_n_steps=0 must be at least 1"),
    (["trainer.max_epochs=0"], "trainer.max_epochs=0 must be at least 1, or -1 for no limit"),
    (["trainer.max_steps=-3"], "trainer.max_steps=-3 must be at least 1, or -1 for no limit"),
    (["trainer.max_epochs=-1"], "trainer.max_epochs=-1 and trainer.max_steps=-1 set no end"),
    (["trainer.use_distributed_sampler=true"], "trainer.use_distributed_sampler=true would share out twice"),
    (
        [CPU, "trainer.num_nodes=2"],
        "trainer.num_nodes=2: start the processes of all nodes yourself, with torchrun or srun, or leave that to -m",
    ),
    ([CPU, "trainer.devices=-1"], "trainer.devices=-1 means all GPUs, and there is none to be used"),
    (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val=-1 must be 0 (off) or more"),
    (["trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch=0 must be at least 1"),
    # warm-up against the steps of training
    (["schedule.warmup_steps=-1"], "schedule.warmup_steps=-1 must be at least 0"),
    (["schedule.warmup_steps=2520"], "schedule.warmup_steps=2520 leaves nothing of the 2520 steps of training; lower"),
    (["trainer.max_steps=50"], "schedule.warmup_steps=50 leaves nothing of the 50 steps"),
    (["trainer.max_epochs=2"], "leaves nothing of the 42 steps"),
    (["trainer.max_epochs=2", "data.drop_last=true"], "leaves nothing of the 40 steps"),
    (["trainer.max_epochs=5", "++trainer.limit_train_batches=10"], "leaves nothing of the 50 steps"),
    (["trainer.max_epochs=4", "++trainer.limit_train_batches=0.5"], "leaves nothing of the 44 steps"),
    (
        ["trainer.max_epochs=2", "trainer.accumulate_grad_batches=4", "++trainer.limit_train_batches=10"],
        "leaves nothing of the 6 steps",
    ),
    (
        ["schedule=reciprocal_sqrt", "schedule.cooldown_steps=2470"],
        "schedule.warmup_steps=50 and schedule.cooldown_steps=2470 leave nothing of the 2520 steps",
    ),
]


@pytest.mark.parametrize(
    ("overrides", "words"), ONE_LINE, ids=lambda case: " ".join(case) if type(case) is list else ""
)
def test_one_mistake_is_one_line_that_names_value_knob_and_remedy(
    found: Found, overrides: list[str], words: str
) -> None:
    (line,) = found(*overrides)
    assert words in line


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
    assert problem == "trainer.devices=-1: a cluster must be asked for a number of devices; name it"
    (problem,) = checks.problems(train.main, {**several, "max_restarts": 2}, remote=True)
    assert problem == "max_restarts=2 starts one machine's processes again, not 2; use max_restarts=0"
