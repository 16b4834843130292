"""A sweep's progress: lines at each change."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sweep_jobs import make_sweep, write_job
from vitlab.jobs.compose import CONF
from vitlab.sweeps import progress
from vitlab.sweeps.status import StatusPoller

JOB = "import sys; print('a line of a job'); print('an error', file=sys.stderr)"
PROGRAM = """
import os, subprocess, sys, time
from pathlib import Path
from vitlab.sweeps import progress
from vitlab.sweeps.ledger import Job, Sweep
progress.INTERVAL = 0.05
progress.start_progress(Path(sys.argv[1]), report=False)
subprocess.run([sys.executable, "-c", sys.argv[2]])
time.sleep(0.3)
progress.stop_progress()
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return make_sweep(tmp_path)


def run(folder: Path) -> str:
    """What the program above prints to stderr."""
    line = [sys.executable, "-c", PROGRAM, str(folder), JOB]
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent / "src")}
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stderr


def test_a_log_gets_a_line_at_each_change(sweep: Path) -> None:
    write_job(sweep, 0, "finished", **{"val/loss": 0.5})
    assert run(sweep).splitlines() == [
        "an error",
        f"sweep {sweep.name}: 1 of 3 jobs done, 0 running, 0 failed, 2 waiting; best val/loss 0.5 (lr=0)",
    ]


def test_each_end_is_printed_once(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_job(sweep, 0, "crashed", error="old news")
    watch = progress.ProgressThread(StatusPoller(sweep), report=False)
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
