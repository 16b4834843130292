"""The machine is named with its threads."""

import torch

from vitlab.benchmark import machine
from vitlab.diagnostics.timing import CPU


def test_threads_are_set_and_in_the_title() -> None:
    before = torch.get_num_threads()
    try:
        clock = machine.clock(rounds=3, seconds=0.1, threads=2, accelerator="cpu")
        assert clock.device == CPU
        title = machine.description(clock)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert title.startswith(f"{machine.processor()}, 2 threads, torch {torch.__version__.partition('+')[0]}")
