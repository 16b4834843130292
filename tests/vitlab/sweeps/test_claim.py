"""One job of a sweep: never run twice, resumed if it was stopped, retried as often as allowed."""

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vitlab.config.schema import Node
from vitlab.distributed import launch, signals
from vitlab.runs import lock, record
from vitlab.runs.folder import CONFIG, RESULTS, read_results
from vitlab.storage import atomic
from vitlab.sweeps import claim, ledger

Turn = Callable[..., None]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "sweep" / "seed_0-0a1b"
    ledger.write_sweep(folder.parent, command="", varies=["seed"], objectives={"val/acc": "max"})
    ledger.add_jobs(folder.parent, {"0a1b": {"folder": folder.name, "settings": {"seed": "0"}}})
    return folder


@pytest.fixture
def turn(job: Path) -> Turn:
    """Call `run_job_once` for a run that ends with a status (and error), or as a function does."""

    def take(end: Any = "finished", *, max_failures_per_job: int = 1, waits: bool = False) -> None:
        def start(config: Node) -> None:
            assert read_results(job)["status"] == "running"
            assert yaml.safe_load((job / CONFIG).read_text()) == config
            assert config["resume"] == "auto"
            if callable(end):
                end()
                return
            atomic.atomic_write(job / RESULTS, json.dumps({"status": end, "error": "why"}))
            if end == "crashed":
                raise launch.JobFailed("why")

        claim.run_job_once(
            job, {"max_failures_per_job": max_failures_per_job, "resume": None, "sweep": "sweep"}, start, waits=waits
        )

    return take


def state(job: Path) -> tuple[str, int]:
    found = ledger.read_sweep(job.parent).jobs[0]
    return found.status, found.attempts


def never() -> None:
    pytest.fail("it was started")


def test_a_job_is_started_once_and_then_finished(job: Path, turn: Turn, capsys: pytest.CaptureFixture[str]) -> None:
    turn()
    assert state(job) == ("finished", 1)
    turn(never)
    assert state(job) == ("finished", 1)
    assert capsys.readouterr().err == "seed_0-0a1b: finished already\n"


@pytest.mark.parametrize("status", ["stopped", "preempted", "interrupted", "cancelled"])
def test_a_stopped_job_is_resumed(job: Path, turn: Turn, status: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        turn(status, max_failures_per_job=0)
    turn()
    assert state(job) == ("finished", 4)
    assert f"seed_0-0a1b: resumed (it was {status}; start 4)" in capsys.readouterr().err


def test_a_job_with_damaged_files_is_resumed(job: Path, turn: Turn, capsys: pytest.CaptureFixture[str]) -> None:
    turn("interrupted")
    for name in (RESULTS, ledger.JOB, CONFIG):
        (job / name).write_bytes(b"\xff\x00")
    turn()
    assert state(job) == ("finished", 1)
    assert "seed_0-0a1b: resumed (it was unreadable; start 1)" in capsys.readouterr().err


def test_a_failed_job_is_retried_as_often_as_allowed_and_then_skipped(job: Path, turn: Turn) -> None:
    for _ in range(2):
        with pytest.raises(launch.JobFailed, match=r"^why$"):
            turn("crashed")
    assert state(job) == ("crashed", 2)
    with pytest.raises(
        launch.JobFailed, match=r"skipped, it has failed 2 times: why; max_failures_per_job=2 retries it$"
    ):
        turn(never)
    turn(max_failures_per_job=2)
    assert state(job) == ("finished", 3)


def test_a_start_that_was_killed_is_no_failure_and_hides_the_last_ones(job: Path, turn: Turn) -> None:
    with pytest.raises(launch.JobFailed):
        turn("crashed")

    def killed() -> None:
        raise KeyboardInterrupt  # stands for a process that is gone before its rank could write anything

    with pytest.raises(KeyboardInterrupt):
        turn(killed)
    assert state(job) == ("interrupted", 2)
    assert "error" not in read_results(job)
    turn()
    assert state(job) == ("finished", 3)


@pytest.mark.parametrize("role", lock.LOCKS)
def test_a_job_that_another_process_runs_is_skipped(
    job: Path, turn: Turn, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock.run_lock(job, role):
        turn(never)
    assert "is being trained in by" in (output := capsys.readouterr().err)
    assert output.endswith(": skipped for now\n")
    assert state(job) == ("waiting", 0)


def test_with_waits_it_is_run_once_its_owner_has_ended(job: Path, turn: Turn) -> None:
    inside = threading.Event()

    def own() -> None:
        with lock.run_lock(job, "rank0"):
            inside.set()
            time.sleep(0.5)

    owner = threading.Thread(target=own)
    owner.start()
    inside.wait()
    turn(waits=True)
    owner.join()
    assert state(job) == ("finished", 1)


def test_two_at_once_start_it_once(job: Path, turn: Turn) -> None:
    starts: list[str] = []

    def slow() -> None:
        starts.append("start")
        time.sleep(0.3)
        atomic.atomic_write(job / RESULTS, json.dumps({"status": "finished"}))

    both = [threading.Thread(target=turn, args=(slow,), kwargs={"waits": True}) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert starts == ["start"]
    assert state(job) == ("finished", 1)


def test_nothing_of_a_cancelled_sweep_starts(job: Path, turn: Turn) -> None:
    ledger.cancel_sweep(ledger.read_sweep(job.parent))
    with pytest.raises(SystemExit) as ended:
        turn(never)
    assert ended.value.code == 130
    assert state(job) == ("waiting", 0)


def test_a_job_that_cancelling_stopped_is_cancelled(job: Path, turn: Turn) -> None:
    def stopped() -> None:
        ledger.cancel_sweep(ledger.read_sweep(job.parent))
        record.record_end(job, "interrupted")
        raise SystemExit(130)

    with pytest.raises(SystemExit):
        turn(stopped)
    assert state(job) == ("cancelled", 1)
    (job.parent / ledger.CANCELLED).unlink()
    turn()
    assert state(job) == ("finished", 2)


def test_cancelling_interrupts_a_process_of_the_job(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "POLL", 0.02)

    def run() -> None:
        with claim.watch_for_cancel(job, {"sweep": "sweep"}):
            ledger.cancel_sweep(ledger.read_sweep(job.parent))
            time.sleep(5)

    with signals.handle_signals(lambda outcome: None), pytest.raises(signals.StopRequested) as stop:
        run()
    assert stop.value.outcome == "interrupted"


@pytest.mark.parametrize("config", [{"sweep": None}, {}])
def test_a_job_that_is_resumed_outside_its_sweep_is_not_interrupted(
    job: Path, config: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "POLL", 0.02)
    ledger.cancel_sweep(ledger.read_sweep(job.parent))
    former = signal.getsignal(signal.SIGINT)
    with claim.watch_for_cancel(job, config):
        time.sleep(0.1)
    assert signal.getsignal(signal.SIGINT) is former
