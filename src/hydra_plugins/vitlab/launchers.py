"""`hydra/launcher=local`, `slurm` and `ray`: which jobs a sweep starts beside each other, and where.

Each launcher's arguments are the settings of `hydra.launcher`; the work is done in `vitlab.sweeps.launchers.local` and
`vitlab.sweeps.launchers.slurm`.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class JobsLauncher(Launcher):
    """What the launchers have in common: a batch of overrides becomes jobs."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def jobs(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
        from vitlab.sweeps.launchers.local import compose_jobs

        return compose_jobs(job_overrides, initial_job_idx, context=self.context, task=self.task, config=self.config)


class LocalLauncher(JobsLauncher):
    """Jobs beside each other on this machine, each on devices of its own.

    `jobs`: how many at once; None: as many as the devices are enough for. More than that share devices.
    """

    def __init__(self, *, jobs: int | None = None) -> None:
        self.at_once = jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from vitlab.sweeps.launchers import local

        return local.launch(self.jobs(job_overrides, initial_job_idx), at_once=self.at_once)


class SlurmLauncher(JobsLauncher):
    """Jobs in SLURM's queue, through submitit; one that is preempted, or out of time, is requeued and goes on.

    `cluster`: `slurm`, or `local` to try it out on this machine. `folder`: submitit's logs. `timeout_min`, `partition`,
    `account`, `qos`, `constraint`, `gres`, `mem_gb` and `cpus_per_device` are sbatch's; `gpus`: whether a device is a
    GPU. `signal_seconds`: how long before the time is up a job is told to save. `parallel`: jobs at once.
    `setup`: lines of shell to run first.
    """

    def __init__(
        self,
        *,
        cluster: str = "slurm",
        folder: str = ".submitit/%j",
        timeout_min: int = 60,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        gres: str | None = None,
        mem_gb: float | None = None,
        cpus_per_device: int = 1,
        gpus: bool = True,
        signal_seconds: int = 120,
        parallel: int = 256,
        setup: list[str] | None = None,
    ) -> None:
        self.settings = {k: v for k, v in locals().items() if k not in ("self", "__class__")}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from vitlab.sweeps.launchers import slurm

        return slurm.launch_on_slurm(self.jobs(job_overrides, initial_job_idx), **self.settings)


class RayLauncher(JobsLauncher):
    """Jobs on a Ray cluster, each where its devices are free; one of several nodes waits for all of them.

    `address`: of the cluster; None: the one of RAY_ADDRESS, or one that runs on this machine, else a new one here.
    `cpus_per_device`: reserved beside each device. `gpus`: whether a device is a GPU; None: if the cluster has any.
    """

    def __init__(self, *, address: str | None = None, cpus_per_device: float = 1.0, gpus: bool | None = None) -> None:
        self.address, self.cpus_per_device, self.gpus = address, cpus_per_device, gpus

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from vitlab.sweeps.launchers import ray

        jobs = self.jobs(job_overrides, initial_job_idx)
        return ray.launch_on_ray(jobs, address=self.address, cpus_per_device=self.cpus_per_device, gpus=self.gpus)
