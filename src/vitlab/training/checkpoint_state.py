"""What a checkpoint holds of Lightning's fit loop and its callbacks, and of the random numbers of a process.

Lightning's own counters depend on the hook that saves, and some are resumed wrongly (lightning 2.6: after a checkpoint
in an epoch's last `on_train_batch_end` the validation is left out, and with `max_steps` an epoch's end is counted
twice). Here there are three states, each resumed exactly: within an epoch, before a validation, before an epoch. The
training batches follow from the step (`DataModule.position`).
"""

import inspect
import random
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer


def set_loop_progress(checkpoint: dict[str, Any], batches_per_epoch: int, *, validation_due: bool) -> None:
    """Set a checkpoint's counters to its completed steps, after which a validation is due or not."""
    loops, step, accumulate = checkpoint["loops"]["fit_loop"], checkpoint["global_step"], checkpoint["accumulate"]
    steps_per_epoch = -(-batches_per_epoch // accumulate)
    epoch, done = divmod(step, max(1, steps_per_epoch))
    batches = done * accumulate
    if validation_due and done == 0 and step:  # an epoch ends after its validation
        epoch, batches = epoch - 1, batches_per_epoch
    starts = batches == 0
    at_start = {"ready": epoch + 1, "started": epoch, "processed": epoch, "completed": epoch}
    within = {"ready": epoch + 1, "started": epoch + 1, "processed": epoch, "completed": epoch}
    set_counters("epoch_progress", loops, at_start if starts else within)
    set_counters("epoch_loop.batch_progress", loops, dict.fromkeys(within, batches))
    loops["epoch_loop.batch_progress"]["total"] = dict.fromkeys(within, epoch * batches_per_epoch + batches)
    loops["epoch_loop.batch_progress"]["is_last_batch"] = batches == batches_per_epoch
    waiting = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    set_counters("epoch_loop.val_loop.batch_progress", loops, waiting if validation_due else dict.fromkeys(waiting, 0))
    loops["epoch_loop.val_loop.batch_progress"]["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = step
    steps = batches // accumulate if batches < batches_per_epoch else steps_per_epoch
    progress = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for counter in (loops["epoch_loop.scheduler_progress"], progress["step"], progress["zero_grad"]):
        counter["current"] = dict.fromkeys(counter["current"], steps)


def set_counters(name: str, loops: dict[str, Any], counts: dict[str, int]) -> None:
    """Set a counter for this epoch and for the training."""
    loops[name]["total"], loops[name]["current"] = dict(counts), dict(counts)


def keep_settings(trainer: Trainer, states: dict[str, Any]) -> None:
    """Let the configuration's settings of callbacks replace those in a checkpoint's states, and start a new timer.

    `trainer.max_time` counts from each start. The states of checkpoints hold paths and scores, not settings.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = states.get(callback.state_key, {})
        if isinstance(callback, Timer):
            states.pop(callback.state_key, None)
        elif not isinstance(callback, Checkpoint):
            settings = inspect.signature(type(callback).__init__).parameters
            state.update({key: getattr(callback, key) for key in state if key in settings and hasattr(callback, key)})


def random_state(device: torch.device) -> dict[str, Any]:
    """The random state of this process as plain data; data workers draw by (seed, epoch, index) alone."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (used by other libraries)
    states = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def restore_random_state(states: dict[str, Any], device: torch.device) -> None:
    """Restore the random state of this process; that of a device only for the same type."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.asarray(keys).astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type].cpu())
    elif len(devices := states.get("devices", [])) == torch.cuda.device_count():  # a checkpoint of version 0.0
        torch.cuda.set_rng_state_all([state.cpu() for state in devices])
