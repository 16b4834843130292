"""The three places of training that a checkpoint can be of, within an epoch, before a validation, before an epoch; and
its random states, also in a checkpoint of version 0.0.
"""

import random
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer

from vitlab.training.checkpoint_state import keep_settings, random_state, restore_random_state, set_loop_progress

CPU = torch.device("cpu")


def counters() -> dict[str, Any]:
    names = ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress")
    loops: dict[str, Any] = {name: {"total": {}, "current": {}} for name in names}
    step = {"current": {"ready": 0, "completed": 0}}
    loops["epoch_loop.scheduler_progress"] = {"current": {"ready": 0}}
    optimizer = {"step": step, "zero_grad": {"current": {"ready": 0}}}
    loops["epoch_loop.automatic_optimization.optim_progress"] = {"optimizer": optimizer}
    loops["epoch_loop.state_dict"] = {}
    return loops


@pytest.mark.parametrize(
    ("step", "batches", "accumulate", "due", "epoch", "current", "last"),
    [
        (3, 5, 1, False, 0, 3, False),  # within the first epoch
        (5, 5, 1, True, 0, 5, True),  # before its validation
        (5, 5, 1, False, 1, 0, False),  # before the second epoch
        (12, 28, 3, False, 1, 6, False),  # 10 steps an epoch, the last of one batch
        (10, 28, 3, True, 0, 28, True),
        (10, 28, 3, False, 1, 0, False),
        (1, 1, 1, True, 0, 1, True),  # epochs of a single step
        (2, 3, 4, False, 2, 0, False),
    ],
)
def test_the_counters_follow_from_the_steps(
    step: int, batches: int, accumulate: int, due: bool, epoch: int, current: int, last: bool
) -> None:
    loops = counters()
    checkpoint = {"loops": {"fit_loop": loops}, "global_step": step, "accumulate": accumulate}
    set_loop_progress(checkpoint, batches, validation_due=due)
    place = {"ready": epoch + 1, "started": epoch + bool(current), "processed": epoch, "completed": epoch}
    assert loops["epoch_progress"] == {"total": place, "current": place}
    assert loops["epoch_loop.batch_progress"]["current"]["ready"] == current
    assert loops["epoch_loop.batch_progress"]["total"]["ready"] == epoch * batches + current
    assert loops["epoch_loop.batch_progress"]["is_last_batch"] is last
    begun = {"ready": int(due), "started": int(due), "processed": 0, "completed": 0}
    assert loops["epoch_loop.val_loop.batch_progress"] == {"total": begun, "current": begun, "is_last_batch": False}
    assert loops["epoch_loop.state_dict"]["_batches_that_stepped"] == step
    steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["current"]["ready"]
    assert steps == (-(-batches // accumulate) if last else current // accumulate)


def test_every_counter_of_the_optimizer_is_set_and_no_validation_is_over() -> None:
    for due in (True, False):
        loops = counters()
        checkpoint = {"loops": {"fit_loop": loops}, "global_step": 5, "accumulate": 1}
        set_loop_progress(checkpoint, 5, validation_due=due)
        assert loops["epoch_loop.val_loop.batch_progress"]["is_last_batch"] is False
        optimizer = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        for counter in (loops["epoch_loop.scheduler_progress"], optimizer["zero_grad"]):
            assert counter["current"]["ready"] == (5 if due else 0)


def test_settings_are_the_configurations_and_the_rest_is_the_checkpoints() -> None:
    stopping, best = EarlyStopping("val/loss", patience=3), ModelCheckpoint(monitor="val/loss", save_top_k=2)
    trainer = Trainer(callbacks=[stopping, best, Timer(duration={"hours": 1})], logger=False, accelerator="cpu")
    states: dict[str, Any] = {
        stopping.state_key: {**stopping.state_dict(), "patience": 9, "wait_count": 2},
        best.state_key: {**best.state_dict(), "monitor": "val/acc"},
        "Timer": {"time_elapsed": {"train": 3600.0}},
    }
    keep_settings(trainer, states)
    assert states[stopping.state_key]["patience"] == 3
    assert states[stopping.state_key]["wait_count"] == 2
    assert states[best.state_key]["monitor"] == "val/acc"
    assert "Timer" not in states


def draws() -> list[Any]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


def test_a_restored_state_repeats_what_was_drawn(tmp_path: Any) -> None:
    torch.save(random_state(CPU), tmp_path / "state.pt")
    first = draws()
    assert draws() != first
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True), CPU)
    assert draws() == first


def test_states_of_all_devices_are_restored_on_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restored.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    states, device = random_state(CPU), torch.zeros(3, dtype=torch.uint8)
    for devices in (0, 1, 2, 3):
        restore_random_state({**states, "devices": [device] * devices}, CPU)
    assert len(restored) == 1
    assert len(restored[0]) == 2


def test_a_device_s_own_state_is_kept_with_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[Any] = []
    device, state = torch.device("cuda", 0), torch.ones(3, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", restored.append)
    states = random_state(device)
    assert states["cuda"] is state
    restore_random_state(states, device)
    restore_random_state(states, CPU)
    assert len(restored) == 1
    assert torch.equal(restored[0], state)


def test_states_of_version_0_0_are_restored() -> None:
    states = random_state(CPU)
    kind, keys, *rest = states["numpy"]
    first = draws()
    restore_random_state({**states, "devices": []}, CPU)  # of a checkpoint
    assert draws() == first
    restore_random_state({**states, "numpy": [kind, keys.tolist(), *rest]}, CPU)  # of a capture
    assert draws() == first
