"""Optuna's side of a search: the stored study, what its trials are asked and told, and how they are counted.

A suggestion that fails is told to Optuna as failed, and what tries it again is a new trial of Optuna's with the same
parameters, which knows the first one's number as `retry_of`. `n_trials` counts suggestions.

Imports Optuna: only what has begun to search imports this.
"""

import hashlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from vitlab import runs
from vitlab.space import Parameter, Space

BUSY = 60.0  # seconds to wait for a SQLite file that another process writes to
RETRY_OF, ATTEMPT, PLACE, FOLDER, REASON = "retry_of", "attempt", "place", "folder", "reason"  # of a trial

log = logging.getLogger(__name__)


@contextmanager
def opened(
    storage: str,
    name: str,
    directions: Sequence[Literal["minimize", "maximize"]] | None = None,
    *,
    sampler: BaseSampler | None = None,
    pruner: BasePruner | None = None,
) -> Iterator[Study]:
    """A study by its name and its database's URL, made if it isn't there and `directions` say what it is for.

    Raises `KeyError` where it isn't there, `ConnectionError` where the database can't be reached.
    """
    from sqlalchemy.exc import SQLAlchemyError

    storage = with_driver(storage)
    optuna.logging.disable_default_handler()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.enable_propagation()
    options = {"connect_args": {"timeout": BUSY}} if storage.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        database = RDBStorage(storage, engine_kwargs=options)
    except (SQLAlchemyError, ImportError) as error:
        raise ConnectionError(f"hydra.sweeper.storage={storage}: {str(error).splitlines()[0]}") from error
    try:
        settings: dict[str, Any] = {"sampler": sampler or RandomSampler(), "pruner": pruner}
        if directions is None:
            yield optuna.load_study(study_name=name, storage=database, **settings)
        else:
            yield optuna.create_study(
                study_name=name, storage=database, directions=list(directions), load_if_exists=True, **settings
            )
    finally:
        database.remove_session()
        database.engine.dispose()


def with_driver(storage: str) -> str:
    """A database's URL that names a driver which is installed: SQLAlchemy's own choice differs from version to version.

    Raises `ConnectionError` where none is.
    """
    scheme, _, rest = storage.partition("://")
    if scheme not in ("postgresql", "postgres"):
        return storage
    for driver in ("psycopg2", "psycopg"):
        if find_spec(driver):
            return f"postgresql+{driver}://{rest}"
    raise ConnectionError(f"hydra.sweeper.storage={storage} needs a driver: pip install psycopg2-binary")


def unreachable(storage: str) -> str | None:
    """Why a database can't be used; None where it can. Nothing is left there."""
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import SQLAlchemyError

    if storage.startswith("sqlite"):  # to connect would make the file
        return runs.unwritable("hydra.sweeper.storage", Path(make_url(storage).database or ".").absolute().parent)
    try:
        engine = create_engine(with_driver(storage))
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    except ConnectionError as error:
        return str(error)
    except (SQLAlchemyError, ImportError) as error:
        return f"hydra.sweeper.storage={storage} can't be reached: {str(error).splitlines()[0]}"
    return None


class Reseeded(BaseSampler):
    """A sampler that draws for each trial anew, from (seed, trial): what is restarted, or shared by several processes,
    never makes the same suggestion twice, and the same trials get the same suggestions.

    Optuna's own go on with the state of one process; in another one the same seed gives the same numbers again.
    """

    def __init__(self, make: Callable[[int | None], BaseSampler], seed: int | None) -> None:
        self.make, self.seed = make, seed
        self.inner = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        if self.seed is not None:
            digest = hashlib.blake2b(f"{self.seed} {trial.number}".encode(), digest_size=4).digest()
            self.inner = self.make(int.from_bytes(digest, "big") >> 1)
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.inner.after_trial(study, trial, state, values)


def reseeded(node: Mapping[str, Any], make: Callable[..., Any]) -> BaseSampler:
    """The sampler that a node describes, drawing anew for each trial.

    A quasi-random sequence is numbered in the study itself and has one seed, or it would be none: only what it leaves
    to chance, choices and conditional parameters, is drawn anew.
    """
    from vitlab.schema import resolve

    def quietly(node: Mapping[str, Any]) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ExperimentalWarning
            )  # Optuna's word for what may be called otherwise one day
            sampler: BaseSampler = make(dict(node))
            return sampler

    if "seed" not in inspect.signature(resolve(node["_target_"])).parameters:
        return quietly(node)
    if node["_target_"].endswith("QMCSampler") and "independent_sampler" not in node:
        chance = {"_target_": "optuna.samplers.RandomSampler"}
        return Reseeded(
            lambda seed: quietly({**node, "independent_sampler": {**chance, "seed": seed}}), node.get("seed")
        )
    return Reseeded(lambda seed: quietly({**node, "seed": seed}), node.get("seed"))


def suggestion(trial: Trial, parameter: Parameter) -> Any:
    """A trial's value of a parameter; the same whenever it is asked for."""
    name, low, high = parameter.name, parameter.low, parameter.high
    if parameter.values:
        return trial.suggest_categorical(name, parameter.values)
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, step=int(parameter.step or 1), log=parameter.log)
    return trial.suggest_float(name, low, high, step=parameter.step, log=parameter.log)


def suggested(study: Study, trial: FrozenTrial, space: Space) -> list[str]:
    """A trial's parameters as overrides; what it hasn't been given yet, because it was cut off, is suggested now."""
    asked = Trial(study, trial._trial_id)
    return space.overrides(lambda parameter: suggestion(asked, parameter))


# ------------------------------------------------------------------------------------------------------- counting


def first(trial: FrozenTrial) -> int:
    """The number of the suggestion that a trial is, or tries again."""
    return int(trial.user_attrs.get(RETRY_OF, trial.number))


def attempt(trial: FrozenTrial) -> int:
    """How often a trial's suggestion was tried before."""
    return int(trial.user_attrs.get(ATTEMPT, 0))


def suggestions(study: Study) -> dict[int, FrozenTrial]:
    """The newest trial of each suggestion, by its number."""
    newest: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        newest[first(trial)] = trial
    return newest


def to_be_tried(study: Study, n_trials: int) -> bool:
    """Whether a suggestion waits to be tried (again), or may still be made."""
    newest = suggestions(study)
    waits = any(trial.state == TrialState.WAITING for trial in newest.values())
    return waits or len(newest) < n_trials


def queue(study: Study, combinations: Sequence[Mapping[str, Any]]) -> None:
    """Queues those combinations that the study doesn't know yet."""
    known = [trial.system_attrs.get("fixed_params") for trial in study.get_trials(deepcopy=False)]
    for combination in combinations:
        if combination not in known:
            study.enqueue_trial(dict(combination))


def note(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Remembers something of a trial."""
    study._storage.set_trial_user_attr(trial._trial_id, key, value)


def fail(study: Study, trial: FrozenTrial, reason: str, *, retries: int) -> bool:
    """Tells that a trial failed; whether it will be tried again."""
    note(study, trial, REASON, reason[:2000])
    study.tell(trial.number, state=TrialState.FAIL)
    if attempt(trial) >= retries:
        return False
    params = study.get_trials(deepcopy=False)[trial.number].params
    study.enqueue_trial(dict(params), user_attrs={RETRY_OF: first(trial), ATTEMPT: attempt(trial) + 1})
    return True
