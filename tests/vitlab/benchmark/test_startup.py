"""A process is timed until it has done what it is for, with its own memory and CPU time, and is killed."""

import math
import sys
import time
from pathlib import Path

import pytest

from vitlab.benchmark import startup
from vitlab.benchmark.goals import outcomes
from vitlab.diagnostics.timing import Clock

# Makes a step after 0.2 s, and would then last a minute, with a child.
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


def has_ended(process: int) -> bool:
    """Whether a process is gone, or only waits for its parent."""
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_process_that_trains_counts_until_its_first_step_and_is_killed_with_its_children(tmp_path: Path) -> None:
    line = ["-S", "-c", TRAINS, "{folder}", str(tmp_path / "child")]
    seconds, used = startup.run_process(line, str(tmp_path), trains=True, threads=1)
    assert 0.2 < seconds < 30
    assert 0 < used["CPU seconds"] < seconds
    if sys.platform == "linux":
        assert 1 < used["MiB"] < 100, "not what this process holds, which has imported torch"
        deadline, child = time.monotonic() + 10, int((tmp_path / "child").read_text())
        while not has_ended(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert has_ended(child)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (None, False),
        ("", False),
        ("step,lr\n1,0.1\n", False),
        ("step,train/loss\n", False),
        ("step,train/loss\n1,2\n", True),
    ],
)
def test_a_row_of_something_else_is_no_step(tmp_path: Path, text: str | None, steps: bool) -> None:
    if text is not None:
        (tmp_path / "metrics.csv").write_text(text)
    assert startup.has_step(tmp_path / "metrics.csv") is steps


@pytest.mark.parametrize(("code", "trains"), [("raise SystemExit('no such')", False), ("print('no such')", True)])
def test_a_process_that_fails_or_never_trains_is_an_error_with_its_output(
    tmp_path: Path, code: str, trains: bool
) -> None:
    with pytest.raises(RuntimeError, match="no such"):
        startup.run_process(["-S", "-c", code], str(tmp_path), trains=trains, threads=1)


def test_a_process_that_makes_no_step_in_time_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="failed"):
        startup.run_process(["-S", "-c", "input()"], str(tmp_path), trains=True, threads=1, timeout=0.1)


@pytest.mark.long
def test_the_default_run_and_help_are_timed_next_to_their_imports() -> None:
    part = startup.Startup(commands=("sweep",), settings=("logger=csv",))
    first, asked = part.cases(Clock(rounds=1, seconds=0.3))
    assert {m.name for m in first.measured} == {"vitlab", "import torch, lightning, timm"}
    assert {m.name for m in asked.measured} == {"vitlab", "import hydra"}
    assert all(len(m.seconds) == 1 and math.isfinite(m.rate) for m in (*first.measured, *asked.measured))
    assert (len(outcomes(first)), len(outcomes(asked))) == (1, 1)
