"""Random states of a process: of Python, NumPy, torch on the CPU and on the process's device."""

import random
from typing import Any

import numpy as np
import torch


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
