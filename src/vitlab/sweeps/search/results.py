"""A search and its results: SWEEP/optimization_results.yaml with the best trials, written at the end."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vitlab.config import paths
from vitlab.config.overrides import as_single_run, parse_overrides
from vitlab.config.schema import Node
from vitlab.storage import atomic
from vitlab.sweeps import ledger
from vitlab.sweeps.search.space import Parameter

RESULTS = "optimization_results.yaml"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """A search: its study, what it searches, and the overrides that all trials share."""

    study: Study
    folder: Path
    space: list[Parameter]
    shared: list[str]
    objectives: dict[str, ledger.Direction]
    callback: Node
    settings: Node
    cfg: DictConfig
    loader: ConfigLoader

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        return self.loader.load_sweep_config(self.cfg, list(overrides))

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def note(self, trial: FrozenTrial, key: str, value: Any) -> None:
        self.study._storage.set_trial_user_attr(trial._trial_id, key, value)


def write_results(search: Search) -> Node:
    objectives, counts = search.objectives, dict(Counter(trial.state.name.lower() for trial in search.trials()))
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    log.info("%s: %d trials (%s)", search.folder, len(search.trials()), states)
    if unfinished := counts.get("running", 0) + counts.get("waiting", 0):
        log.info("%d are not finished; run the same command once they are, for the best of all", unfinished)
    rows = [solution(search, trial) for trial in search.study.best_trials]
    if len(objectives) > 1:
        log.info("no trial is better in all of %s than one of these %d:", ", ".join(objectives), len(rows))
    for row in rows:
        scores = "   ".join(f"{name} {value:.6g}" for name, value in row["values"].items())
        log.info("best: trial %d   %s   %s", row["trial"], scores, row["folder"])
        log.info("  again: %s", row["command"])
    results: Node = {"name": "optuna", "objectives": objectives, "trials": counts, "solutions": rows}
    atomic.atomic_write(search.folder / RESULTS, yaml.safe_dump(results, sort_keys=False))
    return results


def solution(search: Search, trial: FrozenTrial) -> dict[str, Any]:
    """Return a best trial: its scores, parameters, folder, and the command that trains it again."""
    lines = [parameter.as_override(trial.params[parameter.key]) for parameter in search.space]
    return {
        "trial": trial.number,
        "folder": trial.user_attrs.get("folder"),
        "values": dict(zip(search.objectives, trial.values, strict=True)),
        "params": {override.key_or_group: override.value() for override in parse_overrides(lines)},
        "command": paths.command_line(as_single_run([*search.shared, *lines])),
    }
