"""One trial of most kinds of `make faults`; `make test` runs the fastest."""

import os
import signal
from pathlib import Path

import pytest

from faults import kinds
from faults.operations import Operations, read_operations
from faults.trials import FAULTS, run_trial, table

assert kinds  # they fill FAULTS
LONG = ("real processes", "memory", "two loading processes each", "SIGUSR1, two gloo", "one of two")
SAMPLE = [name for name in FAULTS if not any(word in name for word in LONG)]
QUICK = (
    "SIGKILL, one process, with all random operations",
    "train.py killed between two file operations, then resume=auto",
    "last checkpoint with a flipped bit",
    "any file of a sweep damaged, then sweep.py status and report, and the same command",
    "hostile settings, also of allowed classes, in overrides.yaml of a resumed run: refused",
    "two processes in one run folder: the second refused",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.long]) for name in SAMPLE]
)
def test_a_run_survives(name: str, tmp_path: Path) -> None:
    _, _, lost, _ = run_trial(name, 0, 0, tmp_path)
    assert lost == ""


def write_twice(folder: Path) -> None:
    for number in (1, 2):
        with (folder / f"a{number}").open("w") as file:
            file.write("12345678")
            file.flush()
            os.fsync(file.fileno())
        (folder / f"a{number}").replace(folder / "b")


@pytest.mark.parametrize(
    ("kind", "name", "within", "left"),
    [
        ("open", "aN", False, {"b": "12345678"}),
        ("write", "aN", False, {"a2": "", "b": "12345678"}),
        ("write", "aN", True, {"a2": "1234", "b": "12345678"}),
        ("flush", "aN", False, {"a2": "12345678", "b": "12345678"}),
        ("rename", "b", False, {"a2": "12345678", "b": "12345678"}),
        ("remove", "b", False, {"b": "12345678"}),
    ],
)
def test_a_kill_comes_at_the_chosen_operation(
    kind: str, name: str, within: bool, left: dict[str, str], tmp_path: Path
) -> None:
    (folder := tmp_path / "files").mkdir()
    if (pid := os.fork()) == 0:
        try:
            Operations(folder, tmp_path / "operations", ((kind, name), 2), within=within).install()
            write_twice(folder)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (0 if kind == "remove" else -signal.SIGKILL)
    assert {file.name: file.read_text() for file in folder.iterdir()} == left
    done = read_operations(tmp_path / "operations")
    assert done["open", "aN"] == 2
    assert done["rename", "b"] == (2 if kind in ("rename", "remove") else 1)


def test_the_quickest_are_of_the_list() -> None:
    assert set(QUICK) <= set(SAMPLE)


def test_at_least_four_hundred_trials_are_made() -> None:
    assert sum(times for times, _ in FAULTS.values()) >= 400


def test_the_list_is_a_table() -> None:
    lines = table({"a": 3, "b": 2}, {"a": [], "b": ["trial 1: why"]}).splitlines()
    assert lines[2:] == ["| a | 3 | 3 | 0 |", "| b | 2 | 1 | 1 |", "| **all** | **5** | **4** | **1** |"]


def test_an_unexpected_error_is_a_lost_trial_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTS, "broken", (1, lambda trial: trial.random.choice([])))
    name, number, lost, _ = run_trial("broken", 0, 5, tmp_path)
    assert (name, number) == ("broken", 5)
    assert lost.startswith("trial 5 (random.py:")
    assert "IndexError" in lost
