"""Jobs on a Ray cluster start their ranks, on several nodes too, and end alone."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from cluster_jobs import PYTHONPATH, RANK, rank_environments
from vitlab.distributed.signals import STATUS


@pytest.fixture(scope="module")
def rays(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of a process that runs sweeps on two nodes, and its exit status."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "rank.py").write_text(RANK)
    code = f"from cluster_jobs import Path, on_two_nodes; on_two_nodes(Path({str(folder)!r}))"
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("OMP_NUM_THREADS", None)
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    try:
        return folder, process.wait(timeout=300)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.long
def test_each_job_on_ray_starts_its_ranks_and_ends_alone(rays: tuple[Path, int]) -> None:
    folder, _ = rays
    ended = json.loads((folder / "ended.json").read_text())
    assert [completed for completed, _ in ended] == [True, False, False, True]
    assert [ended[0][1], ended[3][1]] == ["0.0", "3.0"]
    assert ended[1][1] == "seed 1 is not liked"
    assert ended[2][1] == "preempted; no checkpoint was made yet"
    for job in range(3):
        environments = rank_environments(folder, job)
        assert [e["RANK"] for e in environments] == ["0", "1"]
        assert {e["OMP_NUM_THREADS"] for e in environments} == {"1"}, "and not what Ray reserved for both"


@pytest.mark.long
def test_a_job_of_two_nodes_on_ray_has_its_ranks_on_both(rays: tuple[Path, int]) -> None:
    environments = rank_environments(rays[0], 3)
    assert [e["RANK"] for e in environments] == ["0", "1", "2", "3"]
    assert [e["GROUP_RANK"] for e in environments] == ["0", "0", "1", "1"]
    assert {e["WORLD_SIZE"] for e in environments} == {"4"}
    assert len({(e["MASTER_ADDR"], e["MASTER_PORT"]) for e in environments}) == 1
    assert len({e["VITLAB_PARENT"] for e in environments}) == 2


@pytest.mark.long
def test_an_interrupt_reaches_the_ranks_on_ray_and_waiting_jobs_never_start(rays: tuple[Path, int]) -> None:
    folder, status = rays
    assert status == STATUS["interrupted"]
    waiting = folder / "interrupted"
    assert {file.read_text() for file in waiting.glob("[01]/signal[01]")} == {str(int(signal.SIGINT))}
    assert len([*waiting.glob("[01]/signal[01]")]) == 4
    assert not (waiting / "2").exists()
    ranks_and_parents = {
        int(e[name]) for job in (0, 1) for e in rank_environments(waiting, job) for name in ("VITLAB_PARENT", "OWN")
    }
    end = time.monotonic() + 30
    while any(map(runs, ranks_and_parents)):
        assert time.monotonic() < end, "a process is left behind"
        time.sleep(0.05)


def runs(process: int) -> bool:
    """Whether a process is there and no mere entry that nobody has looked at."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
