"""A grid is run once, by any number of processes, however often it is started, killed and stopped.

Processes, locks, signals and Hydra are real; instead of a training, a function waits for the test to kill it.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vitlab.runs.folder import read_results
from vitlab.sweeps import claim, ledger

SOURCE = Path(ledger.__file__).parents[2]
PROGRAM = """
import functools, os, time
from pathlib import Path

import train
from vitlab.cli import imports
from vitlab.cli.command import command

imports.preload = lambda config: None  # no network is trained


@functools.wraps(train.main.function)
def instead(**config):
    with (Path(config["run_dir"]) / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\\n")
    if Path(f"broken-{config['seed']}").exists():
        raise ValueError(f"seed {config['seed']} is broken")
    while Path("wait").exists():
        time.sleep(0.02)
    ended = {"status": "stopped", "ended_by": "max_time"} if Path("slow").exists() else {}
    return {config["objective"]: float(config["seed"]), **ended}


instead.__module__ = __name__
main = command("train")(instead)
if __name__ == "__main__":
    main()
"""
QUIET = ["hydra/hydra_logging=none", "trainer.accelerator=cpu"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the program in it."""
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    monkeypatch.setattr(claim, "POLL", 0.05)
    return tmp_path


@pytest.fixture
def start(here: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start the program in its own process."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> "subprocess.Popen[str]":
        line = [sys.executable, str(here / "program.py"), "-m", *arguments]
        started.append(subprocess.Popen(line, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the program here, and return its exit status."""
    spec = importlib.util.spec_from_file_location("program", here / "program.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "program", program)
    spec.loader.exec_module(program)

    def inside(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["program.py", "-m", *arguments, *QUIET])
        try:
            program.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return inside


def sweep() -> ledger.Sweep:
    (folder,) = ledger.SWEEPS.glob("*")
    return ledger.read_sweep(folder)


def states() -> dict[str, tuple[str, int]]:
    return {job.choices["seed"]: (job.status, job.attempts) for job in sweep().jobs}


def starts(job: ledger.Job) -> int:
    """The number of starts that the job's process has recorded."""
    file = job.folder / "starts"
    return file.read_text().count("\n") if file.exists() else 0


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def later(here: Path, act: Callable[[], Any]) -> threading.Thread:
    """Act as soon as another job runs than before."""
    known = {
        job.folder: job.attempts for folder in here.glob("runs/sweeps/*") for job in ledger.read_sweep(folder).jobs
    }

    def wait() -> None:
        until(lambda: list(here.glob(f"{ledger.SWEEPS}/*/{ledger.SWEEP}")))
        until(lambda: any(starts(job) > known.get(job.folder, 0) for job in sweep().jobs))
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_grid_is_run_once_failed_jobs_are_retried_and_new_ones_added(
    run: Callable[..., int], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "broken-0").touch()
    assert run("seed=0,1", "max_failures_per_job=1", "logger=csv") == 1
    assert states() == {"0": ("crashed", 1), "1": ("finished", 1)}
    assert run("seed=1,0", "max_failures_per_job=1") == 1, "in another order, and logged elsewhere: the same"
    capfd.readouterr()
    assert run("seed=0,1", "max_failures_per_job=1") == 1
    line = "skipped, it has failed 2 times: ValueError: seed 0 is broken; max_failures_per_job=2 retries it"
    assert line in capfd.readouterr().err
    assert states() == {"0": ("crashed", 2), "1": ("finished", 1)}
    (here / "broken-0").unlink()
    assert run("seed=0,1,2", "max_failures_per_job=2") == 0
    assert states() == {"0": ("finished", 3), "1": ("finished", 1), "2": ("finished", 1)}
    assert {job.choices["seed"]: starts(job) for job in sweep().jobs} == {"0": 3, "1": 1, "2": 1}
    assert [job.results["val/loss"] for job in sweep().jobs] == [float(job.choices["seed"]) for job in sweep().jobs]
    folders = {path.name for path in sweep().folder.iterdir() if path.is_dir()}
    assert folders == {"report"} | {f"seed_{job.choices['seed']}-{job.id}" for job in sweep().jobs}


@pytest.mark.long
def test_a_job_that_ended_by_time_is_resumed_by_the_next_command_and_not_by_this_one(
    run: Callable[..., int], here: Path
) -> None:
    (here / "slow").touch()
    for number in (1, 2):
        assert run("seed=0,1") == 0
        assert states() == {"0": ("stopped", number), "1": ("stopped", number)}
    (here / "slow").unlink()
    assert run("seed=0,1") == 0
    assert states() == {"0": ("finished", 3), "1": ("finished", 3)}


@pytest.mark.long
def test_signals_and_cancel_end_the_job_and_start_no_other(
    run: Callable[..., int], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "wait").touch()
    actions: list[tuple[Callable[[], Any], int, str]] = [
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 75, "preempted"),
        (lambda: os.kill(os.getpid(), signal.SIGINT), 130, "interrupted"),
        (lambda: ledger.cancel_sweep(sweep()), 130, "cancelled"),
    ]
    for number, (act, status, outcome) in enumerate(actions, start=1):
        acting = later(here, act)
        assert run("seed=0,1") == status
        acting.join()
        assert states() == {"0": (outcome, number)}, "the other is not planned"
        assert sweep().total == 2
    (here / "wait").unlink()
    capfd.readouterr()
    assert run("seed=0,1") == 0
    assert "): it is resumed\n" in capfd.readouterr().err
    assert states() == {"0": ("finished", 4), "1": ("finished", 1)}


@pytest.mark.long
def test_two_processes_share_a_sweep_and_one_resumes_the_jobs_of_a_killed_one(
    start: Callable[..., "subprocess.Popen[str]"], run: Callable[..., int], here: Path
) -> None:
    (here / "wait").touch()
    other = start("seed=0,1,2,3", *QUIET)
    until(lambda: list(here.glob("runs/sweeps/*/seed_0-*/starts")))

    def kill() -> None:
        try:
            assert states() == {"0": ("running", 1), "1": ("running", 1)}
            other.send_signal(signal.SIGSTOP)  # it can't record how its job ends
            os.kill(read_results(sweep().jobs[0].folder)["process"], signal.SIGKILL)
            other.kill()
            other.wait()
            until(lambda: states()["0"] == ("interrupted", 1))  # a killed process takes a moment to go
        finally:
            (here / "wait").unlink()

    killing = later(here, kill)
    assert run("seed=0,1,2,3") == 0
    killing.join()
    assert states() == {"0": ("finished", 2), "1": ("finished", 1), "2": ("finished", 1), "3": ("finished", 1)}
    assert [starts(job) for job in sweep().jobs] == [2, 1, 1, 1]
