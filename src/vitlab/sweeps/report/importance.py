"""The share of a sweep's differences that each setting explains: permutation importance (Breiman 2001)."""

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitlab.sweeps.ledger import Job
from vitlab.sweeps.report.table import finite_numbers

FEWEST = 4  # jobs for a forest
MOST = 1000  # jobs, drawn from more: the time grows with their square
RELIABLE = 60  # jobs; with fewer the shares are only hints: the tests measure how much they vary


@dataclass(frozen=True)
class Importance:
    """The share of the variance that each setting explains, largest first, and why the others have no share."""

    shares: dict[str, float]
    n: int  # jobs, drawn from all that are scored
    scored: int
    left_out: dict[str, str]


def setting_importance(jobs: Sequence[Job], objective: str) -> Importance:
    """Return the shares (none for too few jobs or equal scores) of what varies."""
    scored = [job for job in jobs if job.status == "finished" and objective in finite_numbers(job)]
    count = len(scored)
    if count > MOST:
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
    shares = permutation_shares(columns, scores) if len(scored) >= FEWEST and len(set(scores)) > 1 and columns else {}
    return Importance(shares, len(scored), count, left_out)


def as_numbers(values: Sequence[str]) -> list[float] | None:
    with suppress(ValueError):
        numbers = [float(value) for value in values]
        return numbers if all(map(math.isfinite, numbers)) else None
    return None


def permutation_shares(columns: Mapping[str, Sequence[Any]], scores: Sequence[float]) -> dict[str, float]:
    """Return the shares of a table with a column of strings or numbers for each setting, largest first.

    A forest, for which only the order of numbers counts, predicts the scores; a setting's importance is by how much the
    prediction suffers if its column is shuffled.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    ranks = np.column_stack([np.unique(np.asarray(values), return_inverse=True)[1] for values in columns.values()])
    forest = RandomForestRegressor(64, random_state=0).fit(ranks, scores)
    losses = permutation_importance(forest, ranks, scores, n_repeats=20, random_state=0).importances_mean.clip(min=0)
    shares = losses / (losses.sum() or 1.0)
    return dict(sorted(zip(columns, shares.tolist(), strict=True), key=lambda item: -item[1]))
