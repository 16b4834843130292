"""Jobs on a cluster: submitit's queue on this machine, and a Ray cluster of two nodes started on it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from sweep_jobs import batch
from vitlab.cli import register
from vitlab.distributed import launch
from vitlab.distributed.signals import STATUS, StopRequested
from vitlab.jobs import compose
from vitlab.sweeps.launchers import ray, slurm

ROOT = compose.CONF.parent
PYTHONPATH = os.pathsep.join(map(str, (ROOT, ROOT / "src", ROOT / "tests")))  # workers import this file
RANK = """
import json, os, signal, sys, time
from pathlib import Path
from vitlab.distributed import launch
launch.exit_with_parent(int(os.environ['VITLAB_PARENT']))
folder, rank = Path(os.environ['VITLAB_RUN']), os.environ.get('RANK', '0')
def stopped(number, frame):
    (folder / f'signal{rank}').write_text(str(int(number)))
    sys.exit(130)
signal.signal(signal.SIGINT, stopped)
(folder / rank).write_text(json.dumps(dict(os.environ, OWN=str(os.getpid()))))
while len([*folder.glob('[0-9]')]) < int(os.environ.get('WORLD_SIZE', '1')):
    time.sleep(0.05)  # real ranks don't end before all have met either
if (folder.parent / 'wait').exists():
    time.sleep(600)
"""
SLURM: dict[str, Any] = {"cluster": "local", "timeout_min": 5, "cpus_per_device": 1, "gpus": False}
SLURM |= {"signal_seconds": 60, "parallel": 8, "mem_gb": None, "setup": None}


def ranks(cfg: DictConfig) -> float:
    """A job whose ranks write their environments; it fails or is stopped, depending on its seed."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        launch.run_ranks(run_dir.parent / "rank.py", run_dir, cfg.trainer.devices)
    except StopRequested as stop:
        sys.exit(STATUS[stop.outcome])
    if cfg.seed == 1:
        raise ValueError("seed 1 is not liked")
    if cfg.seed == 2:
        sys.exit(STATUS["preempted"])
    return float(cfg.seed)


def rank_environments(folder: Path, job: int) -> list[Any]:
    """The environments of a job's ranks."""
    return [json.loads(file.read_text()) for file in sorted((folder / str(job)).glob("[0-9]"))]


def seeds(*numbers: int) -> list[list[str]]:
    return [[f"seed={number}", "trainer.devices=2"] for number in numbers]


# ----------------------------------------------------------------------------------------------------------- SLURM


@pytest.fixture(scope="module")
def queued(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[JobReturn]]:
    """Three jobs of two ranks in submitit's queue on this machine: one is right, one fails, one is stopped."""
    folder = tmp_path_factory.mktemp("queue")
    (folder / "rank.py").write_text(RANK)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    jobs = batch(ranks, folder, *seeds(0, 1, 2))
    results = slurm.launch_on_slurm(jobs, folder=str(folder / "logs" / "%j"), **SLURM)
    monkeypatch.undo()
    return folder, results


@pytest.mark.long
def test_each_queued_job_starts_its_ranks_and_ends_alone(queued: tuple[Path, list[JobReturn]]) -> None:
    folder, results = queued
    assert [r.status == JobStatus.COMPLETED for r in results] == [True, False, False]
    assert results[0].return_value == 0.0
    assert "seed 1 is not liked" in str(results[1]._return_value)
    assert "no checkpoint was made yet" in str(results[2]._return_value)
    for job in range(3):
        environments = rank_environments(folder, job)
        assert [e["RANK"] for e in environments] == ["0", "1"]
        assert {e["WORLD_SIZE"] for e in environments} == {"2"}
    assert len({rank_environments(folder, job)[0]["MASTER_PORT"] for job in range(3)}) == 3


def test_the_batch_script_asks_for_what_a_job_needs_and_queues_it_again_when_it_was_preempted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With programs of SLURM's names that note what they are given, since there is no cluster here."""
    programs, script = tmp_path / "bin", tmp_path / "script"
    programs.mkdir()
    bodies = {
        "sbatch": f"cp $1 {script}; echo no cluster here >&2; exit 3",
        "srun": "exit $SRUN_STATUS",
        "scontrol": f'echo "$@" >> {tmp_path}/requeued',
    }
    for name, body in bodies.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    jobs = batch(ranks, tmp_path, ["trainer.num_nodes=2", "trainer.devices=4", "trainer.accelerator=gpu"])
    settings = {**SLURM, "cluster": "slurm", "gpus": True, "cpus_per_device": 6, "partition": "a100"}
    with pytest.raises(Exception, match="no cluster here"):
        slurm.launch_on_slurm(jobs, folder=str(tmp_path / "logs" / "%j"), **settings)
    text = script.read_text()
    for line in (
        "nodes=2",
        "ntasks-per-node=1",
        "gpus-per-node=4",
        "cpus-per-task=24",
        "signal=USR1@60",
        "partition=a100",
    ):
        assert f"#SBATCH --{line}\n" in text, line
    assert "#SBATCH --requeue\n" in text
    assert "--kill-on-bad-exit=1 --cpus-per-task=24" in text
    for status, requeued in ((0, ""), (1, ""), (75, "requeue 41\n")):
        environment = {**os.environ, "SRUN_STATUS": str(status), "SLURM_JOB_ID": "41"}
        assert subprocess.run(["bash", str(script)], env=environment, check=False).returncode in (status, 0)
        file = tmp_path / "requeued"
        assert (file.read_text() if file.exists() else "") == requeued, status
    with pytest.raises(ValueError, match=r"hydra.launcher.partition='a\\nrm' has several lines"):
        slurm.launch_on_slurm(jobs, folder="x", **{**settings, "partition": "a\nrm"})


# ------------------------------------------------------------------------------------------------------------- Ray


def on_two_nodes(folder: Path) -> None:
    """What a process of its own does for the next test: a cluster, a sweep on it, another that is interrupted."""
    from ray.cluster_utils import Cluster

    register.register()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    settings: dict[str, Any] = {"address": cluster.address, "cpus_per_device": 1.0, "gpus": None}
    try:
        jobs = batch(ranks, folder, *seeds(0, 1, 2), ["seed=3", "trainer.devices=2", "trainer.num_nodes=2"])
        results = ray.launch_on_ray(jobs, **settings)
        ended = [[result.status == JobStatus.COMPLETED, str(result._return_value)] for result in results]
        (folder / "ended.json").write_text(json.dumps(ended))

        waiting = folder / "interrupted"
        waiting.mkdir()
        (waiting / "wait").touch()
        (waiting / "rank.py").write_text(RANK)

        def interrupt() -> None:
            while len([*waiting.glob("[01]/[01]")]) < 4:
                time.sleep(0.05)
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        ray.launch_on_ray(batch(ranks, waiting, *seeds(0, 3, 4)), **settings)
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def rays(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of that process, and its exit status."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "rank.py").write_text(RANK)
    code = (
        f"from tests.vitlab.sweeps.launchers.test_slurm import Path, on_two_nodes; on_two_nodes(Path({str(folder)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("OMP_NUM_THREADS", None)
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    try:
        return folder, process.wait(timeout=300)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def runs(process: int) -> bool:
    """Whether a process is there and no mere entry that nobody has looked at."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
