"""Optuna's side of a search: the stored study, the sampler, and the suggestions of a trial."""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial

from vitlab.config import instantiate
from vitlab.config.schema import Node
from vitlab.sweeps.ledger import Direction
from vitlab.sweeps.search.space import Parameter

BUSY_TIMEOUT = 60.0  # seconds to wait for a SQLite file that another process writes to


@contextmanager
def open_study(
    storage: str,
    name: str,
    directions: Iterable[Direction] | None = None,
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
