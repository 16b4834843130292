"""A sweep's progress, read from its folder at every stage, and its lines at each change."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sweep_jobs import RUNNING, make_sweep, write_job
from vitlab.jobs.compose import CONF
from vitlab.runs.folder import RESULTS
from vitlab.sweeps import progress
from vitlab.sweeps.ledger import SWEEP, Job, Status, Sweep
from vitlab.sweeps.progress import ProgressThread, format_duration, job_line, status_line

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
    watch = ProgressThread(sweep, report=False)
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


def poll(poller: ProgressThread) -> Sweep:
    found = poller.poll()
    assert found is not None
    return found


def test_before_anything_is_written_there_is_nothing_to_see(tmp_path: Path) -> None:
    assert ProgressThread(tmp_path).poll() is None
    assert ProgressThread(tmp_path / "nowhere").poll() is None


def test_a_sweep_is_followed_from_its_start_to_its_end(sweep: Path) -> None:
    poller = ProgressThread(sweep)
    assert [job.status for job in poll(poller).jobs] == ["waiting"] * 3
    write_job(sweep, 0, "running")
    found = poll(poller)
    assert (found.jobs[0].name, found.jobs[0].status) == ("lr=0", "running")
    write_job(sweep, 0, "finished", **{"val/loss": 1.0, "seconds": 9.0})
    write_job(sweep, 1, "crashed", error="ValueError: x")
    write_job(sweep, 2, "pruned", **{"val/loss": 0.5})
    found = poll(poller)
    line = f"sweep {sweep.name}: 2 of 3 jobs done, 0 running, 1 failed; best val/loss 1 (lr=0)"
    assert status_line(found, None) == line, "a pruned one is not the best"
    (sweep / "job0" / RESULTS).unlink()
    assert poll(poller).jobs[0].status == "finished", "what is done isn't read again"
    write_job(sweep, 1, "running")
    assert poll(poller).jobs[1].status == "running", "what failed may be retried"


def test_a_job_that_was_killed_is_not_running(sweep: Path) -> None:
    write_job(sweep, 0, "running")
    RUNNING.clear()
    write_job(sweep, 1, "running")
    assert [job.status for job in poll(ProgressThread(sweep)).jobs] == ["interrupted", "running", "waiting"]


def test_the_time_left_follows_what_was_done_since_the_first_look(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("vitlab.sweeps.progress.time.time", lambda: now[0])
    write_job(sweep, 0, "finished", **{"val/loss": 1.0})
    poller = ProgressThread(sweep, planned=5)
    poll(poller)
    assert poller.left is None, "nothing was measured yet"
    write_job(sweep, 1, "crashed")
    write_job(sweep, 2, "finished")
    now[0] += 60
    poll(poller)
    assert poller.left == pytest.approx(60 * 2), "one a minute, two are left: one that crashed isn't waited for"


def test_a_damaged_job_is_shown_and_hides_no_other(sweep: Path) -> None:
    write_job(sweep, 0, "running")
    damaged = write_job(sweep, 1, "interrupted")
    (damaged / RESULTS).write_bytes(b"\xff\x00")
    (write_job(sweep, 2, "running", seconds="x") / "config.yaml").write_text("trainer: [1]")
    jobs = poll(ProgressThread(sweep)).jobs
    assert [job.status for job in jobs] == ["running", "unreadable", "running"]
    assert job_line(jobs[1], "val/loss").startswith("lr=1: unreadable: results.json is damaged (")


def test_a_job_that_ended_by_time_is_counted_as_stopped(sweep: Path) -> None:
    write_job(sweep, 0, "stopped", **{"val/loss": 1.0})
    found = poll(ProgressThread(sweep))
    assert status_line(found, None).endswith("0 of 3 jobs done, 0 running, 0 failed, 1 stopped, 2 waiting")


def job(name: str, status: Status, **results: Any) -> Job:
    return Job(name, Path(name), {"lr": name}, status, 1, {key.replace("__", "/"): v for key, v in results.items()})


def test_names_and_errors_can_be_printed(sweep: Path) -> None:
    write_job(sweep, 1, "crashed", error="a\x1b[2Jb")
    head = (sweep / SWEEP).read_text()
    (sweep / SWEEP).write_text(head.replace('"lr": "1"', '"lr": "1\\u001b[2J\\n"'))
    crashed = poll(ProgressThread(sweep)).jobs[1]
    assert job_line(crashed, "val/loss") == "lr=1\\x1b[2J\\n: crashed: a\\x1b[2Jb"


def test_the_lines_of_a_sweep_and_of_its_jobs() -> None:
    jobs = [job("1", "finished", val__acc=0.25, seconds=200.0), job("2", "running"), job("3", "crashed")]
    found = Sweep(Path(), "s", "", {"val/acc": "max"}, jobs, 8)
    assert status_line(found, 700.0) == (
        "sweep s: 1 of 8 jobs done, 1 running, 1 failed, 5 waiting; best val/acc 0.25 (lr=1); about 12 min left"
    )
    stopped = [job("1", "interrupted"), job("2", "preempted")]
    found = Sweep(Path(), "s", "", {"val/acc": "max"}, stopped, 3)
    assert status_line(found, None) == "sweep s: 0 of 3 jobs done, 0 running, 0 failed, 2 stopped, 1 waiting"
    assert job_line(jobs[0], "val/acc") == "lr=1: finished, val/acc 0.25, 3 min"
    assert job_line(jobs[2], "val/acc") == "lr=3: crashed: no error was recorded"
    long = job_line(job("a", "crashed", error="x\ny" * 100), "val/acc")
    assert len(long) < 140
    assert "\n" not in long
    assert [format_duration(s) for s in (40, 100, 9000)] == ["40 s", "2 min", "2.5 h"]
