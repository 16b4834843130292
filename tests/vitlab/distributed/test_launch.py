"""The processes of a job: as many as asked for, all on one configuration, none left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vitlab.distributed import launch, template
from vitlab.distributed.signals import StopRequested
from vitlab.jobs.compose import CONF


def script(folder: Path, text: str) -> Path:
    """A rank's program; `write(text)` writes to `FOLDER/RANK`."""
    file = folder / "entry.py"
    file.write_text(
        "import json, os, signal, sys, time\n"
        "from pathlib import Path\n"
        "rank = os.environ.get('RANK', '0')\n"
        "def write(text, name=rank):\n"
        "    temporary = Path(os.environ['VITLAB_RUN'], f'.{name}')\n"
        "    temporary.write_text(str(text))\n"
        "    temporary.rename(temporary.with_name(name))\n" + text
    )
    return file


def is_alive(process: int) -> bool:
    """Whether a process runs; one that is dead but not yet waited for by anyone does not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: Any, what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain: {what}"
        time.sleep(0.05)


def test_two_ranks_know_their_number_their_count_and_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "a.job.before")  # what an earlier job left must not lead astray
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    entry = script(tmp_path, "write(json.dumps(dict(os.environ, arguments=sys.argv[1:])))\n")
    launch.run_ranks(entry, tmp_path, 2)
    ranks = [json.loads((tmp_path / rank).read_text()) for rank in "01"]
    for number, rank in enumerate(ranks):
        assert (rank["RANK"], rank["LOCAL_RANK"], rank["WORLD_SIZE"]) == (str(number), str(number), "2")
        assert rank["VITLAB_RUN"] == str(tmp_path)
        assert rank["arguments"] == [], "the command line, with a sweep in it, is not run again"
        assert rank["MASTER_ADDR"] != "a.job.before"
        assert int(rank["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert ranks[0]["MASTER_PORT"] == ranks[1]["MASTER_PORT"] != "1"
    assert template.RUN_VARIABLE not in os.environ


def test_machines_of_a_job_count_their_ranks_on_and_meet_at_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = script(tmp_path, "write(json.dumps(dict(os.environ)))\n")
    port = next(port for _ in range(100) if (port := launch.free_port()) < 25_000)
    slurm = {"NNODES": "2", "NTASKS": "2", "JOB_ID": f"{port - 15_000}", "JOB_NODELIST": "127.0.0.1"}
    kept: list[Any] = []
    for node in range(2):
        for name, value in {**slurm, "NODEID": str(node), "PROCID": str(node)}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)  # Lightning must not think that the tasks are the ranks
        launch.run_ranks(entry, tmp_path, 2)
        kept.append(launch._stores[tmp_path])  # as the first machine's process does as long as it lives
    ranks = [json.loads((tmp_path / rank).read_text()) for rank in "0123"]
    assert [rank["LOCAL_RANK"] for rank in ranks] == ["0", "1", "0", "1"]
    assert [rank["GROUP_RANK"] for rank in ranks] == ["0", "0", "1", "1"]
    assert {rank["WORLD_SIZE"] for rank in ranks} == {"4"}
    assert {rank["MASTER_PORT"] for rank in ranks} == {str(port)}
    assert not any("SLURM_NTASKS" in rank for rank in ranks)
    with pytest.raises(launch.JobFailed, match=r"^rank 3 of 4 ended with status 3"):
        launch.run_ranks(script(tmp_path, "sys.exit(3 * (rank == '3'))\n"), tmp_path, 2)


def test_every_python_that_is_started_finds_this_vitlab_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for former, now in (("", "/a"), ("/b", "/a:/b"), ("/a:/b", "/a:/b")):
        monkeypatch.setenv("PYTHONPATH", former)
        launch.export_pythonpath(Path("/a"))
        assert os.environ["PYTHONPATH"] == now


def test_one_rank_is_one_plain_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MASTER_ADDR", "a.job.before")
    launch.run_ranks(script(tmp_path, "write(json.dumps(dict(os.environ)))\n"), tmp_path, 1)
    environment = json.loads((tmp_path / "0").read_text())
    assert environment["VITLAB_RUN"] == str(tmp_path)
    assert environment["OMP_NUM_THREADS"] == "7", "what the user says about threads holds"
    assert not {"WORLD_SIZE", "MASTER_ADDR"} & set(environment)


def test_a_failed_rank_takes_the_others_down_and_the_job_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = script(
        tmp_path,
        "write(os.getpid())\n"
        "while not all(Path(os.environ['VITLAB_RUN'], r).exists() for r in '01'):\n    time.sleep(0.02)\n"
        "if rank == '1':\n    sys.exit(3)\n"
        "time.sleep(600)\n",
    )
    monkeypatch.setattr(launch, "TAKEDOWN", 0.3)
    start = time.monotonic()
    with pytest.raises(launch.JobFailed, match=r"rank 1 of 2 ended with status 3; the other ranks ended"):
        launch.run_ranks(entry, tmp_path, 2)
    assert time.monotonic() - start < 30, "the rank that is left would sleep for ten minutes"
    for rank in "01":
        assert not is_alive(int((tmp_path / rank).read_text()))


def test_a_single_process_that_fails_fails_the_job_with_its_status(tmp_path: Path) -> None:
    with pytest.raises(launch.JobFailed, match="ended with status 7"):
        launch.run_ranks(script(tmp_path, "sys.exit(7)\n"), tmp_path, 1)


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Any]:
    """A program that runs a job of so many ranks, started: the process that gets the signals."""
    started: list[subprocess.Popen[bytes]] = []

    def start(entry: Path, ranks: int) -> subprocess.Popen[bytes]:
        program = (
            "import sys; from pathlib import Path; from vitlab.distributed import launch, signals\n"
            f"try:\n    launch.run_ranks(Path({str(entry)!r}), Path({str(tmp_path)!r}), {ranks})\n"
            f"except (launch.JobFailed, signals.StopRequested) as error:\n"
            f"    Path({str(tmp_path)!r}, 'error').write_text(str(error))\n"
            "    sys.exit(1)\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(CONF.parent / "src")}
        started.append(subprocess.Popen([sys.executable, "-c", program], env=environment, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_is_passed_on_and_waited_for_and_leaves_no_orphan(
    tmp_path: Path, parent: Any, number: signal.Signals, ranks: int
) -> None:
    entry = script(
        tmp_path,
        "seen = []\n"
        "def end(number, frame):\n"
        "    seen.append(int(number))\n"
        "    time.sleep(0.5)\n"  # the time that writing a checkpoint takes
        "    write(seen, f'signal{rank}')\n"
        "    sys.exit(5)\n"
        "for number in (signal.SIGTERM, signal.SIGINT):\n    signal.signal(number, end)\n"
        "write(os.getpid())\n"
        "time.sleep(600)\n",
    )
    process = parent(entry, ranks)
    files = [tmp_path / str(rank) for rank in range(ranks)]
    wait_until(lambda: all(file.exists() for file in files), "the ranks start")
    for file in files:
        assert os.getpgid(int(file.read_text())) != process.pid, "Ctrl-C would come twice, here and passed on"
    os.killpg(process.pid, number)  # as a terminal does it: to the process group
    assert process.wait(timeout=60) == 1
    for rank, file in enumerate(files):
        assert not is_alive(int(file.read_text()))
        assert json.loads((tmp_path / f"signal{rank}").read_text()) == [number], "once, not twice"
    error = (tmp_path / "error").read_text()
    assert error == ("interrupted" if number == signal.SIGINT else "preempted"), "asked for, and so no failure"


def test_after_a_job_signals_mean_what_they_meant_before(tmp_path: Path) -> None:
    def mine(number: int, frame: Any) -> None:
        pass

    former = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(launch.JobFailed):
            launch.run_ranks(script(tmp_path, "sys.exit(1)\n"), tmp_path, 1)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, former)


def test_a_killed_rank_is_named_and_not_those_that_fail_because_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "TAKEDOWN", 5.0)
    text = "if rank == '1':\n    os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(0.2)\nsys.exit(1)\n"
    with pytest.raises(launch.JobFailed, match=r"rank 1 of 2 was killed by SIGKILL \(by a user, or") as failed:
        launch.run_ranks(script(tmp_path, text), tmp_path, 2)
    assert failed.value.killed


def test_a_job_that_fails_is_started_again_as_often_as_is_allowed(tmp_path: Path) -> None:
    count = "os.environ['TORCHELASTIC_RESTART_COUNT']"
    text = f"write(1, 'attempt' + {count})\nsys.exit(int({count}) < 2)\n"
    entry = script(tmp_path, text)
    with pytest.raises(launch.JobFailed, match="the process ended with status 1"):
        launch.run_ranks(entry, tmp_path, 1, max_restarts=1)
    launch.run_ranks(entry, tmp_path, 1, max_restarts=2)
    assert {file.name for file in tmp_path.glob("attempt*")} == {"attempt0", "attempt1", "attempt2"}


@pytest.mark.parametrize(("status", "outcome"), [(75, "preempted"), (130, "interrupted")])
def test_ranks_that_were_asked_to_stop_are_no_failure_and_not_started_again(
    status: int, outcome: str, tmp_path: Path
) -> None:
    text = f"write(1, 'attempt' + os.environ['TORCHELASTIC_RESTART_COUNT'])\nsys.exit({status})\n"
    with pytest.raises(StopRequested) as stopped:
        launch.run_ranks(script(tmp_path, text), tmp_path, 1, max_restarts=3)
    assert stopped.value.outcome == outcome
    assert {file.name for file in tmp_path.glob("attempt*")} == {"attempt0"}


def test_ranks_that_wait_in_vain_for_one_that_was_stopped_are_stopped_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "TAKEDOWN", 0.2)
    text = "if rank == '1':\n    sys.exit(75)\ntime.sleep(600)\n"
    with pytest.raises(StopRequested) as stopped:
        launch.run_ranks(script(tmp_path, text), tmp_path, 2)
    assert stopped.value.outcome == "preempted"
