"""A sweep's progress: lines in a log, and in a real terminal a table below the jobs' own lines."""

import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from sweep_jobs import make_sweep, write_job
from vitlab.jobs.compose import CONF
from vitlab.sweeps import progress
from vitlab.sweeps.ledger import Job, Sweep
from vitlab.sweeps.status import JobProgress, StatusPoller, SweepStatus

JOB = "import sys; print('a line of a job'); print('an error', file=sys.stderr)"
PROGRAM = """
import os, subprocess, sys, time
from pathlib import Path
from vitlab.sweeps import progress
from vitlab.sweeps.ledger import Job, Sweep
progress.INTERVAL = 0.05
before = os.fstat(1).st_rdev
progress.start_progress(Path(sys.argv[1]), report=False)
subprocess.run([sys.executable, "-c", sys.argv[2]])
time.sleep(0.3)
progress.stop_progress()
assert os.fstat(1).st_rdev == os.fstat(2).st_rdev == before, "the terminal was not given back"
print("after it")
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return make_sweep(tmp_path)


def run(folder: Path, *, terminal: bool) -> str:
    """What the program above prints, in a terminal of 100 columns or into a pipe."""
    line = [sys.executable, "-c", PROGRAM, str(folder), JOB]
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent / "src"), "TERM": "xterm-256color", "COLUMNS": "100"}
    if not terminal:
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stderr
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 100))
    process = subprocess.Popen(line, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        ready, _, _ = select.select([ours], [], [], 1)
        try:
            part = os.read(ours, 65536) if ready else None
        except OSError:  # the other end is closed
            break
        if part == b"":
            break
        shown += part or b""
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


def test_in_a_terminal_the_table_stays_below_the_jobs_lines(sweep: Path) -> None:
    write_job(sweep, 0, "finished", **{"val/loss": 0.5})
    write_job(sweep, 1, "running")
    write_job(sweep, 2, "crashed", error="ValueError: no such thing")
    shown = run(sweep, terminal=True)
    assert shown.count("\x1b[1A") > 3, "it is drawn over, not again and again"
    last = shown.rpartition("\x1b[1A")[2]
    assert [words in last for words in ("1 of 3 jobs done", "1 running", "1 failed", "val/loss 0.5")] == [True] * 4
    assert "ValueError: no such thing" in last
    assert "after it" in last
    assert "a line of a job" not in last, "it was printed above the table"
    for line in ("a line of a job", "an error"):
        assert shown.count(line) == 1
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l"), "the cursor is there"


def test_a_log_gets_a_line_at_each_change(sweep: Path) -> None:
    write_job(sweep, 0, "finished", **{"val/loss": 0.5})
    assert run(sweep, terminal=False).splitlines() == [
        "an error",
        f"sweep {sweep.name}: 1 of 3 jobs done, 0 running, 0 failed, 2 waiting; best val/loss 0.5 (lr=0)",
    ]


def test_each_end_is_printed_once(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_job(sweep, 0, "crashed", error="old news")
    watch = progress.ProgressThread(StatusPoller(sweep), terminal=False, report=False)
    watch.update()
    assert capsys.readouterr().err == "", "it had failed before"
    write_job(sweep, 1, "finished", **{"val/loss": 0.25})
    write_job(sweep, 0, "running")
    watch.update()
    watch.update()
    first = capsys.readouterr().err.splitlines()
    assert first[0] == "lr=1: finished, val/loss 0.25"
    assert len(first) == 2
    write_job(sweep, 0, "crashed", error="again")
    watch.update(last=True)
    assert capsys.readouterr().err.splitlines()[0] == "lr=0: crashed: again"
    watch.update(last=True)
    assert capsys.readouterr().err == ""


def test_at_the_end_the_report_is_written_and_an_error_there_is_printed(
    sweep: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    node = OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep)}, "sweeper": {}}})
    callback = progress.Progress()
    callback.on_multirun_start(node)
    write_job(sweep, 0, "finished", **{"val/loss": 0.5})
    callback.on_multirun_end(node)
    progress.stop_progress()
    page = sweep / "report" / "index.html"
    assert capsys.readouterr().err.count(f"report: {page}\n") == 1
    assert "lr" in page.read_text()
    page.unlink()
    page.mkdir()
    progress.start_progress(sweep)
    progress.stop_progress()
    assert "the report can't be written: IsADirectoryError" in capsys.readouterr().err


def test_a_table_of_many_jobs_is_short_and_fits_its_width() -> None:
    error, name = {"error": "ValueError: " + "x" * 300}, "a_very_long_name_of_a_model"
    running = [Job(f"r{i}", Path(), {"optimizer.lr": f"{i}", "model": name}, "running", 1, {}) for i in range(40)]
    failed = [Job(f"f{i}", Path(), {"lr": f"{i}"}, "crashed", 1, error) for i in range(20)]
    best = Job("best", Path(), {"lr": "9"}, "finished", 1, {"val/acc": 0.75})
    shown = {job.id: JobProgress(i / 40, f"{i}/40", 0.5) for i, job in enumerate(running)}
    sweep = Sweep(Path(), "s", "", {"val/acc": "max"}, [*running, *failed, best])
    console = Console(width=80, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(progress.status_table(SweepStatus(sweep, shown, 101, 60.0)))
    lines = captured.get().rstrip().splitlines()
    assert len(lines) <= 2 * progress.MAX_ROWS + 5
    assert max(map(len, lines)) <= 80
    head = " ".join(" ".join(lines[1:3]).split())
    for words in ("40 running", "40 waiting", "best val/acc 0.75 (lr=9)", "about 60 s left"):
        assert words in head
    assert (
        sum(line.startswith("running  ") and "epoch " in line and line.endswith("val/acc 0.5") for line in lines) == 8
    )
    assert sum(": crashed: ValueError" in line for line in lines) == 8
