"""`hydra/launcher=slurm`: the jobs of a sweep in SLURM's queue, through submitit.

A job is sent as it was composed here, and runs there as `vitlab.sweeps.launchers.local` runs it here: Hydra's `run_job`
in the main thread of a process of its own, which starts one rank for each of the machine's devices. A job of several
machines has such a process on each, which finds the first one through `vitlab.distributed.environment.NodeInfo`. All
machines see the sweep's folder and this source tree.
"""

import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from hydra.core.utils import JobReturn

from vitlab.distributed import signals
from vitlab.runs.folder import read_results
from vitlab.sweeps.launchers.local import Job

POLL = 1.0  # seconds between two checks for jobs that have ended
# requeue a job that was preempted: it resumes from what it saved
REQUEUE = f"trap '[ $? = {signals.STATUS['preempted']} ] && scontrol requeue $SLURM_JOB_ID' EXIT"


def launch_on_slurm(
    jobs: Sequence[Job],
    *,
    cluster: str,
    folder: str,
    timeout_min: int,
    cpus_per_device: int,
    gpus: bool,
    signal_seconds: int,
    parallel: int,
    mem_gb: float | None,
    setup: list[str] | None,
    **sbatch: str | None,
) -> list[JobReturn]:
    """Submit the jobs, those with the same needs as one array, and wait for them; see `SlurmLauncher`.

    Each has one task on each of its nodes, which starts that node's ranks: so a rank's death, a signal and
    `max_restarts` mean the same as elsewhere. When this program ends, the jobs stay in the queue.
    """
    import submitit

    for key, value in {"folder": folder, **sbatch}.items():
        if value and "\n" in value:  # the rest would be a line of the batch script
            raise ValueError(f"hydra.launcher.{key}={value!r} has several lines; it must be one")
    pending: list[tuple[Job, Any]] = []
    for (nodes, devices), group in groupby(jobs, key=lambda job: (job.nodes, job.count)):
        batch = list(group)
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(
            name="vitlab",
            nodes=nodes,
            tasks_per_node=1,
            timeout_min=timeout_min,
            cpus_per_task=cpus_per_device * devices,
            gpus_per_node=devices if gpus and batch[0].accelerator != "cpu" else 0,
            slurm_array_parallelism=parallel,
            slurm_setup=[REQUEUE, *(setup or [])],
            # srun ignores sbatch's --cpus-per-task since SLURM 22.05
            slurm_srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={cpus_per_device * devices}"],
            slurm_additional_parameters={"signal": f"USR1@{signal_seconds}", "requeue": True},
            **({"mem_gb": mem_gb} if mem_gb else {}),
            **{f"slurm_{key}": value for key, value in sbatch.items() if value is not None},
        )
        pending += zip(batch, executor.map_array(Job.run, batch), strict=True)
    for job, handle in pending:
        job.log_start(f"{cluster} {handle.job_id}")
    results: dict[int, JobReturn] = {}
    while pending:
        for job, handle in [pair for pair in pending if pair[1].done()]:
            results[job.number] = job.log_end(submitted_result(job, handle))
            pending.remove((job, handle))
        time.sleep(POLL)
    return [results[job.number] for job in jobs]


def submitted_result(job: Job, handle: Any) -> JobReturn:
    """Return the result of a submitted job, or what is known of its end."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        result: JobReturn = handle.results()[0]
    except (FailedJobError, UncompletedJobError) as error:
        status = read_results(job.folder).get("status")
        return job.failure(status if status in signals.STATUS else str(error).strip().splitlines()[-1], hint=True)
    return result
