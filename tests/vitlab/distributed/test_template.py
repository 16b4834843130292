"""A forked rank is what a new process would be, ends with its launcher, and is one where no template can fork it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vitlab.distributed import launch, template
from vitlab.distributed.template import ForkedRank, Template
from vitlab.jobs.compose import CONF

PROGRAM = """
import atexit, json, os, random, resource, signal, sys, threading, time, warnings
from pathlib import Path
import numpy
from vitlab.distributed import launch, template

def import_libraries():
    os.environ["IMPORTED"] = "yes"  # as some do

def prepare(run):
    import_libraries()
    with (run / "prepared").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    exec(os.environ.get("PREPARE", ""))

template.serve(prepare)
import_libraries()
parent = int(os.environ.pop(template.PARENT_VARIABLE))
launch.exit_with_parent(parent)
run, rank = Path(os.environ[template.RUN_VARIABLE]), os.environ.get("RANK", "0")

def write(text, name=rank):
    (run / f".{name}").write_text(str(text))
    (run / f".{name}").rename(run / name)

def state():
    limits = [resource.getrlimit(kind) for kind in range(16)]
    return {
        "environment": dict(os.environ), "cwd": os.getcwd(), "umask": os.umask(0o22), "nice": os.nice(0),
        "cores": sorted(os.sched_getaffinity(0)), "limits": limits, "group": os.getpgid(0) == os.getpid(),
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "handlers": {n: str(signal.getsignal(n)) for n in range(1, 32)},
        "files": {n: os.readlink(f"/proc/self/fd/{n}") for n in range(3)},
        "arguments": sys.argv, "path": sys.path, "main": sys.modules["__main__"].__file__, "name": __name__,
        "filters": [str(f) for f in warnings.filters], "flags": str(sys.flags), "threads": threading.active_count(),
        "inherited": [n for n in range(3, 99) if os.path.exists(f"/proc/self/fd/{n}") and os.get_inheritable(n)],
        "parent": parent == os.getppid(),
    }

"""


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """The text of a program's rank -> its file, for which this process has a template."""
    ours = Template()
    monkeypatch.setattr(launch, "TEMPLATE", ours)
    monkeypatch.setenv("PYTHONPATH", str(CONF.parent / "src"))
    monkeypatch.setattr("atexit.register", lambda function: None)

    def make(text: str) -> Path:
        ours.entry = tmp_path / "entry.py"
        ours.entry.write_text(PROGRAM + text)
        return ours.entry

    yield make
    if ours.process:
        ours.stop()
        assert ours.process.returncode is not None, "a template ends with its last launcher"


def templates(run: Path) -> int:
    """How many processes have imported what the ranks need."""
    return len((run / "prepared").read_text().split()) if (run / "prepared").exists() else 0


def wait_for(file: Path, seconds: float = 60) -> str:
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, f"waited {seconds} s in vain for {file}"
        time.sleep(0.02)
    return file.read_text()


def wait(rank: ForkedRank) -> int:
    while (status := rank.poll()) is None:
        time.sleep(0.01)
    return status


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_forked_rank_is_in_the_state_of_a_new_process(
    entry: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODD", "a=b\udcff\nc")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("SLURM_PROCID", "0")  # of an allocation, in which this process starts the ranks
    program, states = entry("write(json.dumps(state()))\n"), dict[bool, list[Any]]()
    cores = os.sched_getaffinity(0)
    for forks in (True, False):
        for file in tmp_path.glob("[01]"):
            file.unlink()
        if forks:
            with launch.forward_signals([]):  # as while a sweep runs: signals that its terminal ignores are not
                launch.TEMPLATE.start(dict(os.environ))
        else:
            launch.TEMPLATE.stop()
            monkeypatch.setattr(launch, "TEMPLATE", Template())
        os.sched_setaffinity(0, {min(cores)})  # as of a job's process, after the template was started
        try:
            launch.run_ranks(program, tmp_path, 2)
        finally:
            os.sched_setaffinity(0, cores)
        states[forks] = [json.loads((tmp_path / rank).read_text()) for rank in "01"]
        for state in states[forks]:
            state["environment"].pop("MASTER_PORT")
    for forked, new in zip(states[True], states[False], strict=True):
        assert {key: (value, new[key]) for key, value in forked.items() if value != new[key]} == {}
    assert templates(tmp_path) == 1
    assert states[True][1]["environment"]["RANK"] == "1"
    assert states[True][1]["cores"] == [min(cores)]
    assert states[True][0]["parent"]


def test_ranks_of_several_jobs_come_from_one_template_each_with_its_own_random_numbers_and_output(
    entry: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = entry(
        "atexit.register(print, 'the end of', rank)\n"
        "print('without a newline', end=';')\n"
        "write([random.random(), numpy.random.rand()], f'{run.name}-{rank}')\n"
    )
    for job in ("a", "b"):
        (tmp_path / job).mkdir()
        launch.run_ranks(program, tmp_path / job, 2)
    assert templates(tmp_path / "a") + templates(tmp_path / "b") == 1
    numbers = [json.loads(file.read_text()) for job in "ab" for file in (tmp_path / job).glob("?-?")]
    assert len({number for pair in numbers for number in pair}) == 8
    output = capfd.readouterr().out
    assert output.count("without a newline;") == 4
    assert output.count("the end of 1") == 2


@pytest.mark.parametrize(
    ("text", "status"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", -9), ("1 / 0", 1), ("os._exit(75)", 75)]
)
def test_a_forked_rank_ends_with_the_status_of_a_new_process(
    text: str, status: int, entry: Callable[..., Path], tmp_path: Path
) -> None:
    environment = {**os.environ, template.RUN_VARIABLE: str(tmp_path), template.PARENT_VARIABLE: str(os.getpid())}
    program = entry(f"{text}\n")
    launch.TEMPLATE.start(environment)
    rank = launch.TEMPLATE.fork(program, environment)
    assert isinstance(rank, ForkedRank)
    assert wait(rank) == rank.returncode == status
    rank.send_signal(signal.SIGTERM)  # as a process that has ended takes it
    new = subprocess.run([sys.executable, str(program)], env=environment, stderr=subprocess.DEVNULL, check=False)
    assert new.returncode == status


def test_a_signal_reaches_a_forked_rank_and_one_at_its_start_is_not_lost(
    entry: Callable[..., Path], tmp_path: Path
) -> None:
    program = entry("signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\nwrite('ready')\ntime.sleep(600)\n")
    environment = {**os.environ, template.RUN_VARIABLE: str(tmp_path)}
    launch.TEMPLATE.start(environment)
    rank = launch.TEMPLATE.fork(program, environment)
    assert rank
    wait_for(tmp_path / "0")
    assert rank.poll() is None
    rank.send_signal(signal.SIGUSR1)
    assert wait(rank) == 75
    rank = launch.TEMPLATE.fork(program, environment)
    assert rank
    rank.send_signal(signal.SIGTERM)
    assert wait(rank) == -signal.SIGTERM


@pytest.fixture
def launcher(entry: Callable[..., Path], tmp_path: Path) -> Iterator[Any]:
    """Starts a program that runs a job of two forked ranks."""
    started: list[subprocess.Popen[bytes]] = []

    def start(text: str) -> "subprocess.Popen[bytes]":
        lines = [
            "from pathlib import Path",
            "from vitlab.distributed import launch",
            "launch.TAKEDOWN = 0.5",
            f"launch.TEMPLATE.entry = Path({str(entry(text))!r})",
            f"launch.run_ranks(launch.TEMPLATE.entry, Path({str(tmp_path)!r}), 2)",
        ]
        started.append(subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stderr=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


STOPS = """
def stop(*_):
    write(time.time(), f"stopped{rank}")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
write(json.dumps([os.getpid(), os.getppid()]))
time.sleep(600)
"""


def test_a_killed_launcher_ends_its_ranks_and_its_template(launcher: Any, tmp_path: Path) -> None:
    process = launcher(STOPS)
    processes = [number for rank in "01" for number in json.loads(wait_for(tmp_path / rank))]
    processes.append(int((tmp_path / "prepared").read_text()))
    killed = time.time()
    process.kill()
    for rank in "01":
        assert float(wait_for(tmp_path / f"stopped{rank}")) - killed < 1
    while any(map(is_alive, processes)):
        assert time.time() - killed < 30
        time.sleep(0.02)


def test_a_killed_template_ends_no_rank_and_a_killed_keeper_ends_its_rank_and_the_job(
    launcher: Any, tmp_path: Path
) -> None:
    process = launcher(STOPS)
    (_, keeper), _ = (json.loads(wait_for(tmp_path / rank)) for rank in "01")
    os.kill(int((tmp_path / "prepared").read_text()), signal.SIGKILL)
    time.sleep(0.3)
    assert process.poll() is None
    assert not (tmp_path / "stopped0").exists()
    os.kill(keeper, signal.SIGKILL)
    wait_for(tmp_path / "stopped0")
    assert b"rank 0 of 2 was killed by SIGTERM" in process.communicate(timeout=60)[1]
    assert process.returncode == 1


@pytest.mark.parametrize(
    "prepare", ["sys.exit(3)", "threading.Thread(target=time.sleep, args=[1], daemon=True).start()"]
)
def test_ranks_are_new_processes_if_the_template_ends(
    prepare: str, entry: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREPARE", prepare)
    program = entry("write(parent)\n")
    for _ in range(2):
        launch.run_ranks(program, tmp_path, 2)
        assert {(tmp_path / rank).read_text() for rank in "01"} == {str(os.getpid())}
    assert templates(tmp_path) == 1


@pytest.mark.parametrize("change", ["variable", "folder", "program"])
def test_ranks_are_new_processes_if_they_would_import_something_else(
    change: str, entry: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = entry("write([parent, os.environ.get('OMP_NUM_THREADS'), os.getcwd()])\n")
    launch.TEMPLATE.start(dict(os.environ))
    if change == "variable":
        monkeypatch.setenv("OMP_NUM_THREADS", "77")
    elif change == "folder":
        monkeypatch.chdir(tmp_path)
    else:
        program = program.rename(tmp_path / "other.py")
    launch.run_ranks(program, tmp_path, 1)
    assert str(os.getpid()) in (tmp_path / "0").read_text()
    assert templates(tmp_path) == 0


def test_ranks_are_new_processes_where_the_system_cannot_report_their_end(
    entry: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", fail)  # as before Linux 5.3
    launch.run_ranks(entry("write(parent)\n"), tmp_path, 1)
    assert (tmp_path / "0").read_text() == str(os.getpid())
    assert templates(tmp_path) == 0
