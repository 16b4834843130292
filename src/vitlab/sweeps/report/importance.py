"""How much of a sweep's differences each setting explains: fANOVA (Hutter et al. 2014), as Optuna computes it.

Optuna's evaluator wants a study; any sweep becomes one, in memory: a grid and a random search as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitlab.sweeps.ledger import Job
from vitlab.sweeps.report.table import finite_numbers

FEWEST = 4  # jobs, below which there is nothing to fit a forest to
RELIABLE = 60  # jobs, below which shares are hints alone: how much they move then is in the tests


@dataclass(frozen=True)
class Importance:
    """The share of the variance that each setting explains, largest first; `left_out` says why others have none."""

    shares: dict[str, float]
    n: int
    left_out: dict[str, str]


def setting_importance(jobs: Sequence[Job], objective: str) -> Importance:
    """Shares (they sum to 1) of what varies among the finished jobs, the seed included: its share is the noise.

    Without shares where there are fewer than `FEWEST` jobs, or all have the same score. Raises `ImportError` where
    Optuna isn't installed.
    """
    scored = [job for job in jobs if job.status == "finished" and objective in finite_numbers(job)]
    values = [finite_numbers(job)[objective] for job in scored]
    left_out: dict[str, str] = {}
    spaces: dict[str, list[Any]] = {}
    for name in dict.fromkeys(key for job in scored for key in job.choices):
        chosen = [job.choices.get(name) for job in scored]
        if None in chosen:
            left_out[name] = "not every job has it"
        elif len(set(chosen)) == 1:
            left_out[name] = "all finished jobs have the same"
        elif len(set(chosen)) <= max(2, len(scored) // 2):
            spaces[name] = [str(value) for value in chosen]  # a grid's levels weigh alike, whatever they measure
        elif (measured := as_numbers(chosen)) is not None:
            spaces[name] = list(measured)
        else:
            left_out[name] = "nearly every job has another value, and they are no numbers"
    if len(scored) < FEWEST or len(set(values)) == 1 or not spaces:
        return Importance({}, len(scored), left_out)
    return Importance(fanova(spaces, values), len(scored), left_out)


def as_numbers(values: Sequence[str | None]) -> list[float] | None:
    """Settings as floating-point numbers, where all of them are."""
    try:
        return [float(value) for value in values if value is not None]
    except ValueError:
        return None


def fanova(spaces: dict[str, list[Any]], values: Sequence[float]) -> dict[str, float]:
    """Optuna's fANOVA of a table: a column for each setting, texts as categories, numbers as a range."""
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    distributions: dict[str, BaseDistribution] = {}
    for name, column in spaces.items():
        if isinstance(column[0], str):
            distributions[name] = CategoricalDistribution(sorted(set(column)))
        else:
            low, high = min(column), max(column)
            distributions[name] = FloatDistribution(low, high, log=low > 0 and high / low >= 10)
    sampler = optuna.samplers.RandomSampler(seed=0)  # nothing is sampled
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # or it tells that a study was made
    try:
        study = optuna.create_study(sampler=sampler)
        for i, value in enumerate(values):
            params = {name: column[i] for name, column in spaces.items()}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
        shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {name: float(share) for name, share in shares.items()}
