"""Jobs in submitit's queue on this machine, and the batch script of a job."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus

from cluster_jobs import PYTHONPATH, RANK, rank_environments, ranks, seeds
from sweep_jobs import batch
from vitlab.sweeps.launchers import slurm

SLURM: dict[str, Any] = {"cluster": "local", "timeout_min": 5, "cpus_per_device": 1}
SLURM |= {"signal_seconds": 60, "parallel": 8, "mem_gb": None, "setup": None}


@pytest.fixture(scope="module")
def queued(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[JobReturn]]:
    """Three jobs of two ranks in submitit's queue on this machine: one is right, one fails, one is stopped."""
    folder = tmp_path_factory.mktemp("queue")
    (folder / "rank.py").write_text(RANK)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    jobs = batch(ranks, folder, *seeds(0, 1, 2))
    results = slurm.launch_on_slurm(jobs, {**SLURM, "folder": str(folder / "logs" / "%j")})
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
    settings = {**SLURM, "cluster": "slurm", "cpus_per_device": 6, "partition": "a100"}
    with pytest.raises(Exception, match="no cluster here"):
        slurm.launch_on_slurm(jobs, {**settings, "folder": str(tmp_path / "logs" / "%j")})
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
        slurm.launch_on_slurm(jobs, {**settings, "folder": "x", "partition": "a\nrm"})
