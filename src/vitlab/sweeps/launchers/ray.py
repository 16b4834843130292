"""`hydra/launcher=ray`: the jobs of a sweep on a Ray cluster, each on machines with free devices."""

import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from vitlab.config import allowlist
from vitlab.distributed import environment, launch, signals
from vitlab.sweeps.launchers.local import Job
from vitlab.sweeps.launchers.slurm import POLL


def launch_on_ray(
    jobs: Sequence[Job], *, address: str | None, cpus_per_device: float, gpus: bool | None
) -> list[JobReturn]:
    """Run the jobs as their devices become free; see `RayLauncher`.

    A signal to stop interrupts the running jobs, and exits this program when they have ended.
    """
    import ray

    initialized = ray.is_initialized()
    if not initialized:
        variables = {name: os.environ.get(name, "") for name in ("PYTHONPATH", allowlist.VARIABLE)}
        ray.init(address=address, runtime_env={"env_vars": variables}, logging_level=logging.WARNING)
    try:
        if gpus is None:
            gpus = "GPU" in ray.cluster_resources()
        pending = [RayJob(job, cpus_per_device, gpus=gpus) for job in jobs]
        results: dict[int, JobReturn] = {}
        with launch.forward_signals([]) as asked:
            handled = 0
            while pending:
                if len(asked) > handled:
                    handled = len(asked)
                    for running in pending:
                        running.cancel(force=handled > 1)
                # unfinished tasks alone: of a job on several machines one may end early, and would end the wait
                if refs := [ref for running in pending for ref in running.tasks()[1]]:
                    ray.wait(refs, num_returns=1, timeout=POLL)
                for running in list(pending):
                    if (result := running.result()) is not None:
                        results[running.job.number] = running.job.log_end(result)
                        pending.remove(running)
        if asked:
            sys.exit(signals.STATUS[asked[0]])
        return [results[job.number] for job in jobs]
    finally:
        if not initialized:
            ray.shutdown()


class RayJob:
    """A job on Ray: one task on each of its machines, with the job's devices reserved."""

    def __init__(self, job: Job, cpus_per_device: float, *, gpus: bool) -> None:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self.job = job
        # each in its own process, and never restarted silently
        task = ray.remote(max_calls=1, max_retries=0)(run_on_ray)
        cpus, devices = cpus_per_device * job.count, float(job.count) if gpus and job.accelerator != "cpu" else 0.0
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": devices, "name": job.label}
        needs = {"CPU": cpus} | ({"GPU": devices} if devices else {})
        self.group = placement_group([needs] * job.nodes, strategy="STRICT_SPREAD")
        places = [PlacementGroupSchedulingStrategy(self.group, number) for number in range(job.nodes)]
        spot = ray.remote(num_cpus=0)(rendezvous_address).options(scheduling_strategy=places[0]).remote()
        self.refs = [
            task.options(**options, scheduling_strategy=place).remote(job, max(1, int(cpus_per_device)), node, spot)
            for node, place in enumerate(places)
        ]

    def tasks(self) -> tuple[list[Any], list[Any]]:
        """Return the tasks that have ended, and the others."""
        import ray

        ended, others = ray.wait(self.refs, num_returns=len(self.refs), timeout=0)
        return ended, others

    def result(self) -> JobReturn | None:
        """Return the job's result once it has ended on all machines; a failure on one of them stops the others."""
        import ray

        ended, others = self.tasks()
        failed = [result for result in map(self.fetch, ended) if result.status == JobStatus.FAILED]
        if others:
            if failed:
                self.cancel(force=False)
            return None
        ray.util.remove_placement_group(self.group)
        return failed[0] if failed else self.fetch(self.refs[0])

    def fetch(self, ref: Any) -> JobReturn:
        import ray

        try:
            result: JobReturn = ray.get(ref)
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return self.job.failure(f"{type(error).__name__}: {lines[0]}", hint=True)
        return result

    def cancel(self, *, force: bool) -> None:
        """Interrupt the job, or keep it from starting."""
        import ray

        for ref in self.refs:
            with suppress(ray.exceptions.RayError):
                ray.cancel(ref, force=force)


def run_on_ray(job: Job, threads: int, node: int, spot: tuple[str, int]) -> JobReturn:
    """Run a job, or its part on this machine, in a Ray worker."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # Ray's default is for one process
    if job.nodes > 1:
        os.environ[environment.NODES_VARIABLE] = str(environment.NodeInfo(node, job.nodes, *spot))
    try:
        return job.run()
    except SystemExit as end:
        return job.exit_failure(end.code)


def rendezvous_address() -> tuple[str, int]:
    """Return the address of this machine and a free port."""
    import ray

    with socket.socket() as listener:
        listener.bind(("", 0))
        return ray.util.get_node_ip_address(), listener.getsockname()[1]
