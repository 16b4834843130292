"""One trial of most faults of `make faults`; `make test` runs the fastest."""

from pathlib import Path

import pytest

import faults

LONG = ("max_restarts", "memory", "two loading processes each", "SIGUSR1, two gloo", "one of two")
SAMPLE = [name for name in faults.FAULTS if not any(word in name for word in LONG)]
QUICK = (
    "SIGKILL, one process, with all random operations",
    "last checkpoint with a flipped bit",
    "two processes in one run folder: the second refused",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.long]) for name in SAMPLE]
)
def test_a_run_survives(name: str, tmp_path: Path) -> None:
    _, lost, _ = faults.run_trial(name, 0, 0, tmp_path)
    assert lost == ""


def test_the_quickest_are_of_the_list() -> None:
    assert set(QUICK) <= set(SAMPLE)


def test_at_least_two_hundred_trials_are_made() -> None:
    assert sum(times for times, _ in faults.FAULTS.values()) >= 200


def test_the_list_is_a_table() -> None:
    lines = faults.table({"a": 3, "b": 2}, {"a": [], "b": ["trial 1: why"]}).splitlines()
    assert lines[2:] == ["| a | 3 | 3 | 0 |", "| b | 2 | 1 | 1 |", "| **all** | **5** | **4** | **1** |"]
