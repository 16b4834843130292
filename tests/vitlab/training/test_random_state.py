"""The random states of a process come back, also from a checkpoint of version 0.0."""

import random
from typing import Any

import numpy as np
import torch

from vitlab.training.random_state import random_state, restore_random_state

CPU = torch.device("cpu")


def draws() -> list[Any]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


def test_a_restored_state_repeats_what_was_drawn(tmp_path: Any) -> None:
    torch.save(random_state(CPU), tmp_path / "state.pt")
    first = draws()
    assert draws() != first
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True), CPU)
    assert draws() == first


def test_states_of_version_0_0_are_restored() -> None:
    states = random_state(CPU)
    kind, keys, *rest = states["numpy"]
    first = draws()
    restore_random_state({**states, "devices": []}, CPU)  # of a checkpoint
    assert draws() == first
    restore_random_state({**states, "numpy": [kind, keys.tolist(), *rest]}, CPU)  # of a capture
    assert draws() == first
