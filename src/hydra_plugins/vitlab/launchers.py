"""Hydra's entry to `hydra/launcher=local` and `slurm`; the work is in `vitlab.sweeps.launchers`.

Each launcher's arguments are the settings of `hydra.launcher`. Hydra imports this at each start: nothing heavy here.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from vitlab.config.bounds import PositiveFloat, PositiveInt


class JobsLauncher(Launcher):
    """Base class of the launchers, which composes jobs from a batch of overrides."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def jobs(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
        from vitlab.sweeps.launchers.local import compose_jobs

        return compose_jobs(job_overrides, initial_job_idx, context=self.context, task=self.task, config=self.config)


class LocalLauncher(JobsLauncher):
    """Run several jobs at once on this machine, each on its own devices.

    Args:
        jobs: Jobs at once, which share devices if there are too few; None: as many as there are devices for.
    """

    def __init__(self, *, jobs: PositiveInt | None = None) -> None:
        self.at_once = jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from vitlab.sweeps.launchers import local

        jobs = self.jobs(job_overrides, initial_job_idx)
        return local.launch(jobs, at_once=self.at_once, total=len(job_overrides))


class SlurmLauncher(JobsLauncher):
    """Run jobs in SLURM's queue, through submitit; a job that is preempted or out of time is requeued and resumes.

    Args:
        cluster: `slurm`, or `local` to try it on this machine.
        folder: Folder of submitit's logs.
        timeout_min: Time limit in minutes, after which a job saves, is requeued and resumes.
        partition: Partition of the cluster.
        account: Account to charge.
        qos: Quality of service.
        constraint: Features that a node must have.
        gres: Generic resources to ask for.
        mem_gb: Memory of a node in GB.
        cpus_per_device: Cores for each device.
        signal_seconds: Seconds before the time limit at which a job saves.
        parallel: Jobs at once.
        setup: Lines of shell to run first.
    """

    def __init__(
        self,
        *,
        cluster: str = "slurm",
        folder: str = ".submitit/%j",
        timeout_min: PositiveInt = 60,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        gres: str | None = None,
        mem_gb: PositiveFloat | None = None,
        cpus_per_device: PositiveInt = 1,
        signal_seconds: int = 120,
        parallel: PositiveInt = 256,
        setup: list[str] | None = None,
    ) -> None:
        self.settings = {k: v for k, v in locals().items() if k not in ("self", "__class__")}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from vitlab.sweeps.launchers import slurm

        return slurm.launch_on_slurm([*self.jobs(job_overrides, initial_job_idx)], self.settings)
