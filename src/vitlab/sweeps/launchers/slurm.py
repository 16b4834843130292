"""`hydra/launcher=slurm`: the jobs of a sweep in SLURM's queue, through submitit.

On each of its machines a job has a process that starts the ranks, and finds the first machine by
`vitlab.distributed.environment.NodeInfo`. All machines see the sweep's folder and this source tree.
"""

import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from hydra.core.utils import JobReturn

from vitlab.config.schema import Node
from vitlab.distributed import signals
from vitlab.runs.folder import read_results
from vitlab.sweeps.launchers.local import Job

POLL = 1.0  # seconds between two checks for jobs that have ended
SBATCH = ("partition", "account", "qos", "constraint", "gres")  # settings with sbatch's own names
# requeue a job that was preempted: it resumes from what it saved
REQUEUE = f"trap '[ $? = {signals.STATUS['preempted']} ] && scontrol requeue $SLURM_JOB_ID' EXIT"


def launch_on_slurm(jobs: Sequence[Job], settings: Node) -> list[JobReturn]:
    """Submit the jobs, those with the same needs as one array, and wait for them; `settings` are `SlurmLauncher`'s.

    When this program ends, the jobs stay in the queue.
    """
    import submitit

    sbatch = {key: settings[key] for key in SBATCH if settings.get(key) is not None}
    for key, value in {"folder": settings["folder"], **sbatch}.items():
        if "\n" in value:  # the rest would be a line of the batch script
            raise ValueError(f"hydra.launcher.{key}={value!r} has several lines; it must be one")
    pending: list[tuple[Job, Any]] = []
    for (nodes, devices), group in groupby(jobs, key=lambda job: (job.trainer("num_nodes", 1), job.count)):
        batch, cpus = list(group), settings["cpus_per_device"] * devices
        executor = submitit.AutoExecutor(folder=settings["folder"], cluster=settings["cluster"])
        executor.update_parameters(
            name="vitlab",
            nodes=nodes,
            tasks_per_node=1,
            timeout_min=settings["timeout_min"],
            cpus_per_task=cpus,
            gpus_per_node=0 if batch[0].trainer("accelerator", "auto") == "cpu" else devices,
            slurm_array_parallelism=settings["parallel"],
            slurm_setup=[REQUEUE, *(settings["setup"] or [])],
            # srun ignores sbatch's --cpus-per-task since SLURM 22.05
            slurm_srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}"],
            slurm_additional_parameters={"signal": f"USR1@{settings['signal_seconds']}", "requeue": True},
            **({"mem_gb": settings["mem_gb"]} if settings["mem_gb"] else {}),
            **{f"slurm_{key}": value for key, value in sbatch.items()},
        )
        pending += zip(batch, executor.map_array(Job.run, batch), strict=True)
    for job, handle in pending:
        job.log_start(f"{settings['cluster']} {handle.job_id}")
    results: dict[int, JobReturn] = {}
    while pending:
        for job, handle in [pair for pair in pending if pair[1].done()]:
            results[job.number] = job.log_end(submitted_result(job, handle))
            pending.remove((job, handle))
        time.sleep(POLL)
    return [results[job.number] for job in jobs]


def submitted_result(job: Job, handle: Any) -> JobReturn:
    """Return the result of a submitted job, or a failure with how it ended."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        result: JobReturn = handle.results()[0]
    except (FailedJobError, UncompletedJobError) as error:
        status = read_results(job.folder).get("status")
        return job.failure(status if status in signals.STATUS else str(error).strip().splitlines()[-1], hint=True)
    return result
