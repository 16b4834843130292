"""Optuna's side of a search: the stored study, the sampler, and the suggestions of a trial."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from vitlab.config import instantiate
from vitlab.config.schema import Node, parameters, resolve
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
    """Open a study by its name and its database's URL; with `directions` it is created if it does not exist.

    Raises `KeyError` if it does not exist and has no `directions`.
    """
    optuna.logging.disable_default_handler()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.enable_propagation()
    sqlite = storage.startswith("sqlite")
    options = {"connect_args": {"timeout": BUSY_TIMEOUT}} if sqlite else {"pool_pre_ping": True}
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


class PerTrialSeed(BaseSampler):
    """A sampler that is created again for each trial, with a seed derived from (seed, trial number).

    So a resumed search, or several processes that share one, never repeat a suggestion, and a trial always gets the
    same suggestions. Optuna's own samplers restart their random state in each process.
    """

    def __init__(self, make: Callable[[int | None], BaseSampler], seed: int | None) -> None:
        self.make, self.seed = make, seed
        self.inner = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        if self.seed is not None:
            digest = hashlib.blake2b(f"{self.seed} {trial.number}".encode(), digest_size=4).digest()
            self.inner = self.make(int.from_bytes(digest, "big") >> 1)
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, *args: Any) -> Any:
        return self.inner.infer_relative_search_space(*args)

    def sample_relative(self, *args: Any) -> Any:
        return self.inner.sample_relative(*args)

    def sample_independent(self, *args: Any) -> Any:
        return self.inner.sample_independent(*args)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.inner.after_trial(study, trial, state, values)


def build_sampler(node: Node) -> BaseSampler:
    """Return the sampler of a node, seeded per trial, except a quasi-random sequence: the study counts its points."""

    def build(**settings: Any) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler: BaseSampler = instantiate.build_object({**node, **settings})
            return sampler

    target = node["_target_"]
    if "seed" not in parameters(resolve(target)) or target.endswith("QMCSampler"):
        return build()
    return PerTrialSeed(lambda seed: build(seed=seed), node.get("seed"))


def suggest_overrides(study: Study, trial: FrozenTrial, space: Sequence[Parameter]) -> list[str]:
    """Return a trial's parameters as overrides; those that it lacks after an interruption are suggested."""
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
