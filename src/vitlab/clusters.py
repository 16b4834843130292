"""A sweep's jobs on other machines: in SLURM's queue (through submitit), or on a Ray cluster.

A job is sent as it was composed here, and runs there as `vitlab.parallel` runs it here: Hydra's `run_job` in the main
thread of a process of its own, which starts one rank for each of the machine's devices. A job of several machines has
such a process on each, and `launch.Place` tells it where the first one is met. All machines see the sweep's folder and
this source tree.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

from hydra.core.utils import JobReturn

from vitlab import launch, runs, stopping
from vitlab.parallel import Job

POLL = 1.0  # seconds between two looks at what has ended
# SLURM is asked to queue a job again that ended as one that was preempted: it goes on from what it saved.
REQUEUE = f"trap '[ $? = {stopping.STATUS['preempted']} ] && scontrol requeue $SLURM_JOB_ID' EXIT"

log = logging.getLogger(__name__)


def run_there(job: Job) -> JobReturn:
    """Runs a job in the process that it was sent to."""
    return job.run()


# ----------------------------------------------------------------------------------------------------------- SLURM


def on_slurm(
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
    """Submits the jobs, those that need the same as one array, and waits for them; see `SlurmLauncher`.

    Each has one task on each of its nodes, which starts that node's ranks: so a rank's death, a signal and `restarts`
    mean what they mean elsewhere. When this program ends, the jobs stay in the queue.
    """
    import submitit

    for key, value in {"folder": folder, **sbatch}.items():
        if value and "\n" in value:  # what comes after it would be a line of the batch script
            raise ValueError(f"hydra.launcher.{key}={value!r} has several lines; it must be one")
    pending: list[tuple[Job, Any]] = []
    for (nodes, devices), group in groupby(jobs, key=lambda job: (job.nodes, job.count)):
        alike = list(group)
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(
            name="vitlab",
            nodes=nodes,
            tasks_per_node=1,
            timeout_min=timeout_min,
            cpus_per_task=cpus_per_device * devices,
            gpus_per_node=devices if gpus and alike[0].accelerator != "cpu" else 0,
            slurm_array_parallelism=parallel,
            slurm_setup=[REQUEUE, *(setup or [])],
            # srun stopped taking over --cpus-per-task from sbatch in SLURM 22.05
            slurm_srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={cpus_per_device * devices}"],
            slurm_additional_parameters={"signal": f"USR1@{signal_seconds}", "requeue": True},
            **({"mem_gb": mem_gb} if mem_gb else {}),
            **{f"slurm_{key}": value for key, value in sbatch.items() if value is not None},
        )
        pending += zip(alike, executor.map_array(run_there, alike), strict=True)
    for job, handle in pending:
        job.begins(f"{cluster} {handle.job_id}")
    results: dict[int, JobReturn] = {}
    while pending:
        for job, handle in [pair for pair in pending if pair[1].done()]:
            results[job.number] = job.ended(submitted_result(job, handle))
            pending.remove((job, handle))
        time.sleep(POLL)
    return [results[job.number] for job in jobs]


def submitted_result(job: Job, handle: Any) -> JobReturn:
    """What a submitted job gave; where its process ended without, what is known of that."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        result: JobReturn = handle.results()[0]
    except (FailedJobError, UncompletedJobError) as error:
        status = runs.read_results(job.folder).get("status")
        reason = status if status in stopping.STATUS else str(error).strip().splitlines()[-1]
        return job.failed(f"{reason}; {runs.way_on(job.folder)}")
    return result


# ------------------------------------------------------------------------------------------------------------- Ray


def on_ray(jobs: Sequence[Job], *, address: str | None, cpus_per_device: float, gpus: bool | None) -> list[JobReturn]:
    """Runs the jobs on a Ray cluster as their devices come free there; see `RayLauncher`.

    A signal that asks to stop interrupts the jobs that run, which save, and ends this program, with its status, when
    they are gone.
    """
    import ray

    there = ray.is_initialized()
    if not there:
        variables = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        ray.init(address=address, runtime_env={"env_vars": variables}, logging_level=logging.WARNING)
    try:
        if gpus is None:
            gpus = "GPU" in ray.cluster_resources()
        running = {job.number: OnRay(job, cpus_per_device, gpus=gpus) for job in jobs}
        waiting, results = dict(running), dict[int, JobReturn]()
        with launch.passed_on([]) as asked:
            told = 0
            while waiting:
                if len(asked) > told:
                    told = len(asked)
                    for started in waiting.values():
                        started.cancel(force=told > 1)
                # a machine of a job may be done long before its others are: what is over would be no wait
                if refs := [ref for started in waiting.values() for ref in started.open()]:
                    ray.wait(refs, num_returns=1, timeout=POLL)
                for number, started in list(waiting.items()):
                    if (result := started.result()) is not None:
                        results[number] = started.job.ended(result)
                        del waiting[number]
        if asked:
            sys.exit(stopping.STATUS[asked[0]])
        return [results[job.number] for job in jobs]
    finally:
        if not there:
            ray.shutdown()


class OnRay:
    """A job on Ray: one task on each of its machines, with the job's devices reserved."""

    def __init__(self, job: Job, cpus_per_device: float, *, gpus: bool) -> None:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self.job = job
        # a process of its own each, and never begun again in silence
        task = ray.remote(max_calls=1, max_retries=0)(run_on_ray)
        needs = {"CPU": cpus_per_device * job.count}
        if gpus and job.accelerator != "cpu":
            needs["GPU"] = float(job.count)
        threads = max(1, int(cpus_per_device))
        self.group = None
        if job.nodes == 1:
            options: dict[str, Any] = {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0), "name": job.label}
            self.refs = [task.options(**options).remote(job, threads)]
            return
        self.group = placement_group([needs] * job.nodes, strategy="STRICT_SPREAD")
        places = [PlacementGroupSchedulingStrategy(self.group, number) for number in range(job.nodes)]
        spot = ray.remote(num_cpus=0)(meeting_point).options(scheduling_strategy=places[0]).remote()
        options = {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0)}
        self.refs = [
            task.options(**options, scheduling_strategy=place).remote(job, threads, node, spot)
            for node, place in enumerate(places)
        ]

    def open(self) -> list[Any]:
        """Its tasks that aren't over."""
        import ray

        found: list[Any] = ray.wait(self.refs, num_returns=len(self.refs), timeout=0)[1]
        return found

    def result(self) -> JobReturn | None:
        """What the job gave, once it is over on all machines; its end on one of them ends it on the others."""
        import ray

        ended, others = ray.wait(self.refs, num_returns=len(self.refs), timeout=0)
        results = [self.got(ref) for ref in ended]
        bad = [result for result in results if result.status.name == "FAILED"]
        if bad and others:
            self.cancel(force=False)
        if others:
            return None
        if self.group:
            ray.util.remove_placement_group(self.group)
        return bad[0] if bad else self.got(self.refs[0])

    def got(self, ref: Any) -> JobReturn:
        """What a task that is over gave."""
        import ray

        try:
            result: JobReturn = ray.get(ref)
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return self.job.failed(f"{type(error).__name__}: {lines[0]}; {runs.way_on(self.job.folder)}")
        return result

    def cancel(self, *, force: bool) -> None:
        """Interrupts the job; one that waits never begins."""
        import ray

        for ref in self.refs:
            with suppress(ray.exceptions.RayError):
                ray.cancel(ref, force=force)


def run_on_ray(job: Job, threads: int, node: int = 0, spot: tuple[str, int] | None = None) -> JobReturn:
    """Runs a job, or what of it belongs on this machine, in a Ray worker."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # Ray's own is for one process
    if spot is not None:
        os.environ[launch.NODES_VARIABLE] = str(launch.Place(node, job.nodes, *spot))
    try:
        return run_there(job)
    except SystemExit as stop:
        known = [outcome for outcome, status in stopping.STATUS.items() if status == stop.code]
        how = known[0] if known else f"its process ended with status {stop.code}"
        return job.failed(f"{how}; {runs.way_on(job.folder)}")


def meeting_point() -> tuple[str, int]:
    """An address of this machine, and a port that is free on it."""
    import ray

    with socket.socket() as listener:
        listener.bind(("", 0))
        return ray.util.get_node_ip_address(), listener.getsockname()[1]
