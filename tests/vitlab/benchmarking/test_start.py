"""A process is timed until it has done what it is for, its own memory alone is counted, and nothing of it is left."""

import math
import os
import sys
import time
from pathlib import Path

import pytest

from vitlab.benchmarking import start
from vitlab.benchmarking.timing import Clock

# Makes a step after 0.2 s, and would then go on for a minute, with a child.
TRAINS = """
import subprocess, sys, time
from pathlib import Path
file = Path(sys.argv[1], "metrics.csv")
file.write_text("step,train/loss\\n")
child = subprocess.Popen(["sleep", "60"])
Path(sys.argv[2]).write_text(str(child.pid))
time.sleep(0.2)
file.write_text("step,train/loss\\n1,0.5\\n")
time.sleep(60)
"""


def ended(process: int) -> bool:
    """Whether a process is gone, or only waits to be noticed."""
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_process_that_trains_counts_until_its_first_step_and_is_ended_with_all_that_it_started(
    tmp_path: Path,
) -> None:
    line = [sys.executable, "-S", "-c", TRAINS, "{folder}", str(tmp_path / "child")]
    seconds, memory = start.started(line, trains=True)
    assert 0.2 < seconds < 30
    if sys.platform == "linux":
        assert 1 < memory < 100, "not what this process holds, which has imported torch"
        deadline, child = time.monotonic() + 10, int((tmp_path / "child").read_text())
        while not ended(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ended(child)


def test_a_row_of_something_else_is_no_step(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    assert not start.has_stepped(file)
    for text, stepped in (
        ("", False),
        ("step,lr\n1,0.1\n", False),
        ("step,train/loss\n", False),
        ("step,train/loss\n1,2\n", True),
    ):
        file.write_text(text)
        assert start.has_stepped(file) is stepped


@pytest.mark.parametrize(("code", "trains"), [("raise SystemExit('no such')", False), ("print('no such')", True)])
def test_a_process_that_fails_or_never_trains_is_an_error_with_what_it_said(code: str, trains: bool) -> None:
    with pytest.raises(RuntimeError, match="no such"):
        start.started([sys.executable, "-S", "-c", code], trains=trains)


def test_a_process_that_has_no_step_in_time_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "LATEST", 0.1)
    with pytest.raises(RuntimeError, match="sleep 60 failed"):
        start.started(["sleep", "60"], trains=True)


def test_a_process_that_is_asked_to_end_has_time_for_its_own_and_other_variables(tmp_path: Path) -> None:
    code = """
import os, signal, sys, time
from pathlib import Path
def end(*_):
    Path(sys.argv[1], "ended").write_text(os.environ["WORD"])
    raise SystemExit(0)
signal.signal(signal.SIGTERM, end)
Path(sys.argv[1], "begun").touch()
time.sleep(60)
"""
    line = [sys.executable, "-S", "-c", code, "{folder}"]
    until = (tmp_path / "begun").exists
    start.watched(line, tmp_path, until=until, latest=30.0, environment={"WORD": "well"}, patience=30.0)
    assert (tmp_path / "ended").read_text() == "well"


def test_help_of_a_command_is_a_case_of_its_own_with_a_limit() -> None:
    contender = start.process("vitlab", [sys.executable, str(start.SOURCE / "sweep.py"), "--help"])
    (measured,) = Clock(rounds=1, seconds=0.0).measure([contender])
    assert 0.05 < measured.median < 60
    assert measured.calls == 1
    assert 10 < measured.figures["MiB"] < 300 or not os.path.exists("/proc")  # noqa: PTH110


@pytest.mark.long
def test_the_default_run_is_timed_beside_what_it_imports() -> None:
    part = start.Start(commands=("sweep",), settings=("logger=csv",), rounds=1)
    first, asked = part.cases(Clock(rounds=9, seconds=0.3))
    assert {measured.name for measured in first.measured} == {"vitlab", start.IMPORTS, "lightning + timm"}
    assert all(len(measured.seconds) == 1 and math.isfinite(measured.rate) for measured in first.measured)
    assert [goal.least for goal, _, _ in (*first.outcomes(), *asked.outcomes())] == [1 / 1.3, 1.0]
