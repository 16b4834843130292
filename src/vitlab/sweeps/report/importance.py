"""The share of a sweep's differences that each setting explains: Optuna's fANOVA (Hutter et al. 2014), of any sweep."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitlab.runs.muted_logs import muted_logs
from vitlab.sweeps.ledger import Job
from vitlab.sweeps.report.table import finite_numbers

FEWEST = 4  # jobs for a forest
MOST = 300  # jobs, drawn from more: a forest of a thousand takes half a minute
RELIABLE = 60  # jobs; with fewer the shares are only hints: the tests measure how much they vary


@dataclass(frozen=True)
class Importance:
    """The share of the variance that each setting explains, largest first, and why the others have no share."""

    shares: dict[str, float]
    n: int
    left_out: dict[str, str]


def setting_importance(jobs: Sequence[Job], objective: str) -> Importance:
    """Return the shares (none for too few jobs or equal scores) of what varies. Raises `ImportError` without Optuna."""
    scored = [job for job in jobs if job.status == "finished" and objective in finite_numbers(job)]
    if len(scored) > MOST:
        scored = random.Random(0).sample(scored, MOST)
    scores = [finite_numbers(job)[objective] for job in scored]
    left_out: dict[str, str] = {}
    columns: dict[str, Sequence[Any]] = {}
    for name in dict.fromkeys(key for job in scored for key in job.choices):
        values = [job.choices[name] for job in scored if name in job.choices]
        if len(values) < len(scored):
            left_out[name] = "not every job has it"
        elif len(set(values)) == 1:
            left_out[name] = "all finished jobs have the same"
        elif len(set(values)) <= max(2, len(scored) // 2):
            columns[name] = values  # a grid's levels weigh the same, whatever they measure
        elif (numbers := as_numbers(values)) is not None:
            columns[name] = numbers
        else:
            left_out[name] = "nearly every job has another value, and they are not numbers"
    shares = fanova(columns, scores) if len(scored) >= FEWEST and len(set(scores)) > 1 and columns else {}
    return Importance(shares, len(scored), left_out)


def as_numbers(values: Sequence[str]) -> list[float] | None:
    try:
        return [float(value) for value in values]
    except ValueError:
        return None


def fanova(columns: dict[str, Sequence[Any]], scores: Sequence[float]) -> dict[str, float]:
    """Return Optuna's fANOVA of a table with a column for each setting: strings are categories, numbers a range."""
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    distributions: dict[str, BaseDistribution] = {}
    for name, column in columns.items():
        if isinstance(column[0], str):
            distributions[name] = CategoricalDistribution(sorted(set(column)))
        else:
            low, high = min(column), max(column)
            distributions[name] = FloatDistribution(low, high, log=low > 0 and high / low >= 10)
    with muted_logs("optuna"):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))  # nothing is sampled
        for i, score in enumerate(scores):
            params = {name: column[i] for name, column in columns.items()}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
        shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: float(share) for name, share in shares.items()}
