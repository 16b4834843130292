"""Hydra's entry to `hydra/sweeper=optuna`; the search is in `vitlab.sweeps.search`. Nothing heavy is imported here."""

from dataclasses import asdict, dataclass
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from vitlab.config.bounds import PositiveInt
from vitlab.config.schema import Node


@dataclass(kw_only=True)
class OptunaSweeper(Sweeper):
    """Train what Optuna suggests, with any launcher, until the study has `n_trials`.

    Args:
        n_trials: Trials of the study, over all processes and restarts.
        sampler: One of Optuna's samplers.
        n_jobs: Trials that the launcher gets at once.
        study: The study's name in its database; None: the sweep folder's.
        storage: The database's URL; None: SQLite in the sweep's folder.
        objectives: Scores to optimize, each `min` or `max`; None: the run's own `objective`.
        params: The search space (see `vitlab.sweeps.search.space`); the command line takes precedence.
        pruner: One of Optuna's pruners; None: train every trial to its end.
        max_failures: Failed trials after which the search ends.
        trial: Set by the search: a trial's callback, in JSON.
    """

    n_trials: PositiveInt
    sampler: Node
    n_jobs: PositiveInt = 1
    study: str | None = None
    storage: str | None = None
    objectives: dict[str, str] | None = None
    params: dict[str, Any] | None = None
    pruner: Node | None = None
    max_failures: PositiveInt = 10
    trial: str | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Start, resume or join a search. `arguments` are the command line's overrides."""
        from vitlab.distributed import signals
        from vitlab.sweeps.search.optimize import optimize

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        with signals.handle_signals(lambda outcome: None):
            return optimize(asdict(self), self.config, arguments, self.hydra_context.config_loader, self.launcher)
