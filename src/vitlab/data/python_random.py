"""Seed the generators of Python and NumPy, from which timm's transforms draw."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seed_python_and_numpy() -> Iterator[None]:
    """Seed them by torch's generator, so that a run repeats; afterwards, they are as before."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    seed = int(torch.randint(2**32, ()))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
