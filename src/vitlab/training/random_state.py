"""Random states of a process, saved and restored."""

import random
from typing import Any

import numpy as np
import torch

# ------------------------------------------------------------------------------------------------------ random states


def random_state() -> dict[str, Any]:
    """All random states of this process, as plain data.

    Workers that load have none of their own to be kept: what they draw depends on (seed, epoch, index) alone.
    """
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (the state that other people's code draws from)
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "devices": devices,
    }


def restore_random_state(states: list[dict[str, Any]], rank: int) -> None:
    """Sets this process's random states to those of its rank; does nothing for a rank that had none yet."""
    if rank >= len(states):
        return
    state = states[rank]
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if len(state["devices"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([device.cpu() for device in state["devices"]])
