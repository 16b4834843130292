"""A grid is done once, by however many processes, however often it is started, killed and stopped.

Everything here is as users have it, processes, locks, signals and Hydra, but for the training: what is run in its place
takes no time, and waits for the test where it should be killed.
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

from vitlab import claiming, ledger, runs

SOURCE = Path(ledger.__file__).parents[1]
PROGRAM = """
import functools, inspect, os, time
from pathlib import Path

import train
from vitlab.command import command


@functools.wraps(inspect.unwrap(train.main))
def instead(**config):
    with (Path(config["run_dir"]) / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\\n")
    if Path(f"broken-{config['seed']}").exists():
        raise ValueError(f"seed {config['seed']} is broken")
    while Path("wait").exists():
        time.sleep(0.02)
    return {config["objective"]: float(config["seed"])}


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
    monkeypatch.setattr(claiming, "POLL", 0.05)
    return tmp_path


@pytest.fixture
def start(here: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts the program as a process of its own."""
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
    """Runs the program here, and returns its exit status."""
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
    """How often the job's own process says that it was started."""
    return (job.folder / "starts").read_text().count("\n")


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_same_command_does_nothing_again_and_a_new_value_alone(
    run: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("seed=0,1", "logger=csv") == 0
    before = [(job.folder / "results.json").read_bytes() for job in sweep().jobs]
    assert run("seed=1,0") == 0, "in another order, and logged elsewhere"
    assert [(job.folder / "results.json").read_bytes() for job in sweep().jobs] == before
    assert run("seed=0,1,2") == 0
    assert states() == dict.fromkeys("012", ("finished", 1))
    assert [starts(job) for job in sweep().jobs] == [1, 1, 1]
    assert [job.results["val/loss"] for job in sweep().jobs] == [0, 1, 2]
    assert {p.name for p in sweep().folder.iterdir() if p.is_dir()} == {
        f"seed_{j.choices['seed']}-{j.id}" for j in sweep().jobs
    }


def test_a_failed_job_ends_no_other_and_is_tried_again_so_often(
    run: Callable[..., int], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "broken-0").touch()
    assert run("seed=0,1", "retries=1") == 1
    assert states() == {"0": ("crashed", 1), "1": ("finished", 1)}
    assert run("seed=0,1", "retries=1") == 1
    capfd.readouterr()
    assert run("seed=0,1", "retries=1") == 1
    assert states() == {"0": ("crashed", 2), "1": ("finished", 1)}
    assert (
        "left out, it has failed 2 times: ValueError: seed 0 is broken; retries=2 tries it again"
        in capfd.readouterr().err
    )
    (here / "broken-0").unlink()
    assert run("seed=0,1", "retries=2") == 0
    assert states() == {"0": ("finished", 3), "1": ("finished", 1)}


@pytest.mark.parametrize(
    ("number", "status", "outcome"), [(signal.SIGTERM, 75, "preempted"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_the_job_and_starts_no_other(
    run: Callable[..., int], here: Path, number: int, status: int, outcome: str
) -> None:
    (here / "wait").touch()
    send = threading.Thread(
        target=lambda: (until(lambda: list(here.glob("runs/sweeps/*/*/starts"))), os.kill(os.getpid(), number))
    )
    send.start()
    assert run("seed=0,1") == status
    send.join()
    assert states() == {"0": (outcome, 1), "1": ("waiting", 0)}
    (here / "wait").unlink()
    assert run("seed=0,1") == 0
    assert states() == {"0": ("finished", 2), "1": ("finished", 1)}


def test_a_sweep_that_is_cancelled_ends_its_job_and_starts_no_more_until_the_mark_is_gone(
    run: Callable[..., int], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "wait").touch()
    cancel = threading.Thread(
        target=lambda: (until(lambda: list(here.glob("runs/sweeps/*/*/starts"))), ledger.cancel(sweep()))
    )
    cancel.start()
    assert run("seed=0,1") == 130
    cancel.join()
    assert states() == {"0": ("cancelled", 1), "1": ("waiting", 0)}
    (here / "wait").unlink()
    assert run("seed=0,1") == 2
    assert f"remove {sweep().folder.relative_to(here) / 'cancelled'} to go on with it" in capfd.readouterr().err
    (sweep().folder / "cancelled").unlink()
    assert run("seed=0,1") == 0
    assert states() == {"0": ("finished", 2), "1": ("finished", 1)}


def test_two_terminals_share_a_sweep_and_what_a_killed_one_leaves_is_taken_over(
    start: Callable[..., "subprocess.Popen[str]"], here: Path
) -> None:
    (here / "wait").touch()
    arguments = ["seed=0,1,2,3", "trainer.accelerator=cpu"]
    one = start(*arguments)
    until(lambda: list(here.glob("runs/sweeps/*/seed_0-*/starts")))
    two = start(*arguments)
    until(lambda: list(here.glob("runs/sweeps/*/seed_1-*/starts")))
    assert states() == {"0": ("running", 1), "1": ("running", 1), "2": ("waiting", 0), "3": ("waiting", 0)}
    one.kill()
    os.kill(runs.read_results(sweep().jobs[0].folder)["process"], signal.SIGKILL)
    one.wait()
    assert states()["0"] == ("interrupted", 1)
    (here / "wait").unlink()
    output, _ = two.communicate(timeout=120)
    assert two.returncode == 0, output
    assert states() == {"0": ("finished", 2), "1": ("finished", 1), "2": ("finished", 1), "3": ("finished", 1)}
    assert [starts(job) for job in sweep().jobs] == [2, 1, 1, 1]
    assert "4 jobs: 1 run by other processes, 3 to be started" in output
    assert "gone on with (it was interrupted; start 2)" in output
