"""The share of a sweep's differences that each setting explains: permutation importance (Breiman 2001)."""

import math
import random
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from vitlab.sweeps.ledger import Job
from vitlab.sweeps.report.table import finite_numbers

FEWEST = 4  # jobs for a forest
MOST = 1000  # jobs, drawn from more: the time grows with their square
RELIABLE = 60  # jobs; with fewer the shares are only hints: the tests measure how much they vary


def setting_importance(jobs: Sequence[Job], objective: str) -> tuple[dict[str, float], int]:
    """Return the shares, largest first (none for too few jobs or equal scores), and of how many jobs they are.

    A forest, for which only the order of numbers counts, predicts the scores; a setting's importance is by how much the
    prediction suffers if its column is shuffled. Settings that don't vary, that some jobs lack, or that are names of
    single jobs have no share.
    """
    scored = [job for job in jobs if job.status == "finished" and objective in finite_numbers(job)]
    if len(scored) > MOST:
        scored = random.Random(0).sample(scored, MOST)
    scores = [finite_numbers(job)[objective] for job in scored]
    ranks = dict[str, np.ndarray]()
    for name in dict.fromkeys(key for job in scored for key in job.choices):
        values = [job.choices[name] for job in scored if name in job.choices]
        numbers, different = as_numbers(values), len(set(values))
        if len(values) == len(scored) and different > 1 and (numbers or different <= max(2, len(values) // 2)):
            ranks[name] = np.unique(np.asarray(numbers or values), return_inverse=True)[1]
    if len(scored) < FEWEST or len(set(scores)) == 1 or not ranks:
        return {}, len(scored)
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    columns = np.column_stack([*ranks.values()])
    forest = RandomForestRegressor(64, random_state=0).fit(columns, scores)
    losses = permutation_importance(forest, columns, scores, n_repeats=20, random_state=0).importances_mean.clip(min=0)
    shares = dict(zip(ranks, (losses / (losses.sum() or 1.0)).tolist(), strict=True))
    return dict(sorted(shares.items(), key=lambda item: -item[1])), len(scored)


def as_numbers(values: Sequence[str]) -> list[float] | None:
    with suppress(ValueError):
        numbers = [float(value) for value in values]
        return numbers if all(map(math.isfinite, numbers)) else None
    return None
