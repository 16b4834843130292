"""The machine is named with its threads; settings that it can't follow are refused together."""

import pytest
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_everything_that_can_not_be_measured_is_in_one_error() -> None:
    with pytest.raises(ValueError, match="rounds=0 must be") as raised:
        machine.clock(rounds=0, seconds=-1, threads=0, accelerator="gpu")
    assert str(raised.value).splitlines() == [
        "rounds=0 must be at least 1",
        "seconds=-1 must be 0 (a single call) or more",
        "threads=0 must be at least 1, or null for torch's own choice",
        "accelerator=gpu: torch finds no GPU; use accelerator=cpu, or auto",
    ]
