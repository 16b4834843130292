"""The bytes of a step's fullest moment, to the byte, and the same each time."""

import torch

from vitlab.benchmark.peak_memory import peak_bytes
from vitlab.diagnostics.timing import CPU


def test_the_peak_is_what_is_held_and_what_is_there_at_once() -> None:
    held = torch.zeros(1000)  # 4000 bytes; a view of it is no more

    def step() -> None:
        first = held + 1  # 4000
        second = torch.cat([first, first])  # 8000
        del first
        third = second[:500].clone()  # 2000: the second and it are less than the first two
        del second, third

    assert [peak_bytes(step, [held, held[:10]], CPU) for _ in range(2)] == [4000 + 12000] * 2
