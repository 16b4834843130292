"""Run jobs on a Ray cluster."""

import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from hydra.core.utils import JobReturn

from vitlab.config import allowlist
from vitlab.distributed import environment, launch, signals
from vitlab.runs import record
from vitlab.sweeps.launchers.local import Job
from vitlab.sweeps.launchers.slurm import POLL, run_remote_job

# ------------------------------------------------------------------------------------------------------------- Ray


def launch_on_ray(
    jobs: Sequence[Job], *, address: str | None, cpus_per_device: float, gpus: bool | None
) -> list[JobReturn]:
    """Runs the jobs on a Ray cluster as their devices come free there; see `RayLauncher`.

    A signal that asks to stop interrupts the jobs that run, which save, and ends this program, with its status, when
    they are gone.
    """
    import ray

    there = ray.is_initialized()
    if not there:
        variables = {name: os.environ.get(name, "") for name in ("PYTHONPATH", allowlist.VARIABLE)}
        ray.init(address=address, runtime_env={"env_vars": variables}, logging_level=logging.WARNING)
    try:
        if gpus is None:
            gpus = "GPU" in ray.cluster_resources()
        running = {job.number: RayJob(job, cpus_per_device, gpus=gpus) for job in jobs}
        waiting, results = dict(running), dict[int, JobReturn]()
        with launch.forward_signals([]) as asked:
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
            sys.exit(signals.STATUS[asked[0]])
        return [results[job.number] for job in jobs]
    finally:
        if not there:
            ray.shutdown()


class RayJob:
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
        spot = ray.remote(num_cpus=0)(rendezvous_address).options(scheduling_strategy=places[0]).remote()
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
            return self.job.failed(f"{type(error).__name__}: {lines[0]}; {record.resume_hint(self.job.folder)}")
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
        os.environ[environment.NODES_VARIABLE] = str(environment.NodeInfo(node, job.nodes, *spot))
    try:
        return run_remote_job(job)
    except SystemExit as stop:
        known = [outcome for outcome, status in signals.STATUS.items() if status == stop.code]
        how = known[0] if known else f"its process ended with status {stop.code}"
        return job.failed(f"{how}; {record.resume_hint(job.folder)}")


def rendezvous_address() -> tuple[str, int]:
    """An address of this machine, and a port that is free on it."""
    import ray

    with socket.socket() as listener:
        listener.bind(("", 0))
        return ray.util.get_node_ip_address(), listener.getsockname()[1]
