"""Hydra's way to a search with Optuna: `hydra/sweeper=optuna`. What it does is in `vitlab.search`.

Hydra imports every plugin at each start, so nothing heavy is imported here.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from vitlab.schema import Node


class OptunaSweeper(Sweeper):
    """Trains what Optuna suggests, through any launcher, until the study has so many trials.

    Args:
        n_trials: Trials of the whole study, over all processes and restarts; None: every combination of a grid.
        n_jobs: Trials that are handed to the launcher at once.
        study: The study's name in its database; None: the sweep folder's.
        storage: The database's URL; None: SQLite in the sweep's folder.
        objectives: What is optimized, `min` or `max` each; None: the run's own `objective`.
        params: What is searched, in Hydra's sweep grammar (see `vitlab.space`); the command line goes before it.
        when: What is searched only where other parameters have a value.
        sampler: One of Optuna's samplers; None: every combination, a grid.
        pruner: One of Optuna's pruners; None: every trial is trained to its end.
        max_failures: Trials that failed for good, after which the search gives up.
        trial: What a trial's job is told; the search sets it.
    """

    def __init__(
        self,
        *,
        n_trials: int | None,
        n_jobs: int = 1,
        study: str | None = None,
        storage: str | None = None,
        objectives: dict[str, str] | None = None,
        params: dict[str, Any] | None = None,
        when: dict[str, Any] | None = None,
        sampler: Node | None = None,
        pruner: Node | None = None,
        max_failures: int = 10,
        trial: Node | None = None,
    ) -> None:
        self.settings: Node = {
            "n_trials": n_trials,
            "n_jobs": n_jobs,
            "study": study,
            "storage": storage,
            "objectives": objectives,
            "params": params,
            "when": when,
            "sampler": sampler or None,
            "pruner": pruner or None,
            "max_failures": max_failures,
        }
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what Hydra hands over, and makes the launcher that the configuration names."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Searches, goes on with a search, or takes part in one. `arguments` are the command line's overrides."""
        from vitlab import search, stopping

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader

        def launch(jobs: Sequence[Sequence[str]], number: int) -> Any:
            assert self.launcher is not None
            return self.launcher.launch(jobs, initial_job_idx=number)

        with stopping.heard(lambda outcome: None):
            return search.search(self.settings, self.config, arguments, loader, launch)
