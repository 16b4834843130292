"""Optuna's side of a search: the stored study, the sampler, the suggestions of a trial, and the best trials."""

import hashlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from vitlab.config import instantiate, paths
from vitlab.config.overrides import as_single_run, parse_overrides
from vitlab.config.schema import Node
from vitlab.storage import atomic
from vitlab.sweeps import ledger
from vitlab.sweeps.search.space import Parameter

BUSY_TIMEOUT = 60.0  # seconds to wait for a SQLite file that another process writes to
RESULTS = "optimization_results.yaml"  # in the folder of the sweep, written at the end

log = logging.getLogger(__name__)


@contextmanager
def open_study(
    storage: str,
    name: str,
    directions: Iterable[ledger.Direction] | None = None,
    *,
    sampler: BaseSampler | None = None,
    pruner: BasePruner | None = None,
) -> Iterator[Study]:
    """Open a study by its name and its database's URL, or create it with `directions`; without: raise `KeyError`."""
    optuna.logging.disable_default_handler()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.enable_propagation()
    options: Node = {"pool_pre_ping": True}
    if storage.startswith("sqlite"):
        options = {"connect_args": {"timeout": BUSY_TIMEOUT}}
    database = RDBStorage(storage, engine_kwargs=options)
    parts: dict[str, Any] = {"sampler": sampler or RandomSampler(), "pruner": pruner, "storage": database}
    try:
        if directions is None:
            yield optuna.load_study(study_name=name, **parts)
        else:
            kinds = [StudyDirection.MINIMIZE if end == "min" else StudyDirection.MAXIMIZE for end in directions]
            yield optuna.create_study(study_name=name, directions=kinds, load_if_exists=True, **parts)
    finally:
        database.remove_session()
        database.engine.dispose()


def build_sampler(node: Node, trial: int | None = None) -> BaseSampler:
    """Return the sampler of a node, with a seed of its own for a trial."""
    if trial is not None:
        digest = hashlib.blake2b(f"{node['seed']} {trial}".encode(), digest_size=4).digest()
        node = {**node, "seed": int.from_bytes(digest, "big") >> 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        sampler: BaseSampler = instantiate.build_object(node)
        return sampler


def suggest_overrides(study: Study, trial: FrozenTrial, space: Sequence[Parameter], sampler: Node) -> list[str]:
    """Return a trial's parameters as overrides; those that it lacks after an interruption are suggested.

    A sampler with a seed gets a new one for each trial, or a resumed or shared search would repeat suggestions; except
    a quasi-random sequence, whose points the study counts.
    """
    if sampler.get("seed") is not None and not sampler["_target_"].endswith("QMCSampler"):
        study.sampler = build_sampler(sampler, trial.number)
    running, lines = Trial(study, trial._trial_id), list[str]()
    for p in space:
        value: Any
        if p.values:
            value = running.suggest_categorical(p.key, p.values)
        elif isinstance(p.low, int) and isinstance(p.high, int):
            value = running.suggest_int(p.key, p.low, p.high, step=int(p.step or 1), log=p.log)
        else:
            value = running.suggest_float(p.key, p.low, p.high, step=p.step, log=p.log)
        lines.append(p.as_override(value))
    return lines


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
    """Write and log the number of trials by their state, and the best ones."""
    counts = dict(Counter(trial.state.name.lower() for trial in search.trials()))
    rows = [solution(search, trial) for trial in search.study.best_trials]
    results: Node = {"name": "optuna", "objectives": search.objectives, "trials": counts, "solutions": rows}
    text = yaml.safe_dump(results, sort_keys=False, width=1_000_000)  # a command in one line
    atomic.atomic_write(search.folder / RESULTS, text)
    log.info("%s\n%s", search.folder / RESULTS, text)
    if unfinished := counts.get("running", 0) + counts.get("waiting", 0):
        log.info("%d are not finished; run the same command once they are, for the best of all", unfinished)
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
