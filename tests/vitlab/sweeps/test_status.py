"""The progress of a sweep, read from its folder at every stage, and its lines."""

from pathlib import Path
from typing import Any

import pytest

from sweep_jobs import RUNNING, make_sweep, write_job
from vitlab.runs.folder import RESULTS
from vitlab.sweeps import status
from vitlab.sweeps.ledger import SWEEP, Job, Status, Sweep
from vitlab.sweeps.status import StatusPoller, SweepStatus, format_duration, job_line, status_line


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return make_sweep(tmp_path)


def log(folder: Path, *rows: str) -> None:
    (folder / "metrics.csv").write_text("\n".join(["step,epoch,val/loss", *rows]))


def poll(poller: StatusPoller) -> SweepStatus:
    found = poller.poll()
    assert found is not None
    return found


def test_before_anything_is_written_there_is_nothing_to_see(tmp_path: Path) -> None:
    assert StatusPoller(tmp_path).poll() is None
    assert StatusPoller(tmp_path / "nowhere").poll() is None


def test_a_sweep_is_followed_from_its_start_to_its_end(sweep: Path) -> None:
    poller = StatusPoller(sweep)
    assert [job.status for job in poll(poller).sweep.jobs] == ["waiting"] * 3
    folder = write_job(sweep, 0, "running")
    log(folder, "10,1,2.5", "20,2,", "20,2,1.5", "30,3")
    found = poll(poller)
    assert (found.sweep.jobs[0].name, found.sweep.jobs[0].status) == ("lr=0", "running")
    assert found.progress == {"j0": 1 / 8}
    write_job(sweep, 0, "finished", **{"val/loss": 1.0, "seconds": 9.0})
    write_job(sweep, 1, "crashed", error="ValueError: x")
    write_job(sweep, 2, "pruned", **{"val/loss": 0.5})
    found = poll(poller)
    assert (found.count("finished", "pruned"), found.count("crashed"), found.total) == (2, 1, 3)
    assert "best val/loss 1 (lr=0)" in status_line(found), "a pruned one is not the best"
    (sweep / "job0" / RESULTS).unlink()
    assert poll(poller).sweep.jobs[0].status == "finished", "what is done isn't read again"
    write_job(sweep, 1, "running")
    assert poll(poller).sweep.jobs[1].status == "running", "what failed may be retried"


def test_a_job_that_was_killed_is_not_running(sweep: Path) -> None:
    write_job(sweep, 0, "running")
    RUNNING.clear()
    write_job(sweep, 1, "running")
    assert [job.status for job in poll(StatusPoller(sweep)).sweep.jobs] == ["interrupted", "running", "waiting"]


def test_the_time_left_follows_what_was_done_since_the_first_look(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("vitlab.sweeps.status.time.time", lambda: now[0])
    write_job(sweep, 0, "finished", **{"val/loss": 1.0})
    poller = StatusPoller(sweep, planned=5)
    assert poll(poller).left is None, "nothing was measured yet"
    log(write_job(sweep, 1, "running"), "9,5,1.0")
    now[0] += 60
    assert poll(poller).left == pytest.approx(60 * 3.5 / 0.5), "half a job a minute, 3.5 are left"
    write_job(sweep, 1, "crashed")
    write_job(sweep, 2, "finished")
    now[0] += 60
    assert poll(poller).left == pytest.approx(120 * 2 / 1.5), "one that crashed isn't waited for"


def test_of_a_long_table_only_the_end_is_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("step,note\n" + "".join(f"{i},{'x' * 50}\n" for i in range(1000)) + "1000,hal")
    found = list(status.read_last_rows(file))
    assert 50 < len(found) < 100
    assert [row["step"] for row in found[-2:]] == ["999", "1000"]
    assert list(status.read_last_rows(tmp_path / "none.csv")) == []


def test_a_damaged_job_is_shown_and_hides_no_other(sweep: Path) -> None:
    log(write_job(sweep, 0, "running"), "10,1,2.5")
    damaged = write_job(sweep, 1, "interrupted")
    for name in (RESULTS, "metrics.csv"):
        (damaged / name).write_bytes(b"\xff\x00")
    (write_job(sweep, 2, "running", seconds="x") / "config.yaml").write_text("trainer: [1]")
    jobs = poll(StatusPoller(sweep)).sweep.jobs
    assert [job.status for job in jobs] == ["running", "unreadable", "running"]
    assert job_line(jobs[1], "val/loss").startswith("lr=1: unreadable: results.json is damaged (")


def test_a_job_that_ended_by_time_is_counted_as_stopped(sweep: Path) -> None:
    write_job(sweep, 0, "stopped", **{"val/loss": 1.0})
    found = poll(StatusPoller(sweep))
    assert status_line(found).endswith("0 of 3 jobs done, 0 running, 0 failed, 1 stopped, 2 waiting")


def job(name: str, status: Status, **results: Any) -> Job:
    return Job(name, Path(name), {"lr": name}, status, 1, {key.replace("__", "/"): v for key, v in results.items()})


def test_names_and_errors_can_be_printed(sweep: Path) -> None:
    write_job(sweep, 1, "crashed", error="a\x1b[2Jb")
    head = (sweep / SWEEP).read_text()
    (sweep / SWEEP).write_text(head.replace('"lr": "1"', '"lr": "1\\u001b[2J\\n"'))
    crashed = poll(StatusPoller(sweep)).sweep.jobs[1]
    assert job_line(crashed, "val/loss") == "lr=1\\x1b[2J\\n: crashed: a\\x1b[2Jb"


def test_the_lines_of_a_sweep_and_of_its_jobs() -> None:
    jobs = [job("1", "finished", val__acc=0.25, seconds=200.0), job("2", "running"), job("3", "crashed")]
    found = SweepStatus(Sweep(Path(), "s", "", {"val/acc": "max"}, jobs), {}, 8, 700.0)
    assert status_line(found) == (
        "sweep s: 1 of 8 jobs done, 1 running, 1 failed, 5 waiting; best val/acc 0.25 (lr=1); about 12 min left"
    )
    stopped = [job("1", "interrupted"), job("2", "preempted")]
    found = SweepStatus(Sweep(Path(), "s", "", {"val/acc": "max"}, stopped), {}, 3, None)
    assert status_line(found) == "sweep s: 0 of 3 jobs done, 0 running, 0 failed, 2 stopped, 1 waiting"
    assert job_line(jobs[0], "val/acc") == "lr=1: finished, val/acc 0.25, 3 min"
    assert job_line(jobs[2], "val/acc") == "lr=3: crashed: no error was recorded"
    long = job_line(job("a", "crashed", error="x\ny" * 100), "val/acc")
    assert len(long) < 140
    assert "\n" not in long
    assert [format_duration(s) for s in (40, 100, 9000)] == ["40 s", "2 min", "2.5 h"]
