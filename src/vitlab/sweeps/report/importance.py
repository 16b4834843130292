"""The share of a sweep's differences that each setting explains: fANOVA (Hutter et al. 2014), of any sweep."""

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
    shares = fanova(columns, scores) if len(scored) >= FEWEST and len(set(scores)) > 1 and columns else {}
    return Importance(shares, len(scored), count, left_out)


def as_numbers(values: Sequence[str]) -> list[float] | None:
    with suppress(ValueError):
        numbers = [float(value) for value in values]
        return numbers if all(map(math.isfinite, numbers)) else None
    return None


def fanova(columns: Mapping[str, Sequence[Any]], scores: Sequence[float]) -> dict[str, float]:
    """Return the shares of a table with a column for each setting, largest first.

    Strings are categories of the same weight, numbers a range: logarithmic if half of them are in its lowest quarter.
    """
    from sklearn.ensemble import RandomForestRegressor

    parts = list[Any]()  # float32 [jobs, 1] of numbers, [jobs, categories] of categories
    for values in columns.values():
        column = np.asarray(values)
        if isinstance(values[0], str):
            part = column[:, None] == np.unique(column)
        else:
            if column.min() > 0 and np.median(column) < column.min() + np.ptp(column) / 4:
                column = np.log(column)
            part = ((column - column.min()) / (np.ptp(column) or 1.0))[:, None]  # float32 holds no large differences
        parts.append(part.astype(np.float32))
    forest = RandomForestRegressor(64, random_state=0).fit(np.hstack(parts), scores)
    shares = np.mean([tree_shares(tree.tree_, parts) for tree in forest.estimators_], axis=0)
    shares /= shares.sum() or 1.0
    return dict(sorted(zip(columns, shares.tolist(), strict=True), key=lambda item: -item[1]))


def tree_shares(tree: Any, parts: Sequence[Any]) -> Any:
    """Return the share of a tree's variance that each setting explains alone, float64 [settings].

    A setting has cells: its categories, or the intervals between the tree's thresholds. A leaf is some cells of each.
    """
    sizes, places = list[Any](), list[Any]()  # of a cell: its share of the setting, its point in the table
    ends = np.cumsum([part.shape[1] for part in parts])
    for end, part in zip(ends, parts, strict=True):
        first, width = end - part.shape[1], part.shape[1]
        edges = np.hstack([part.min(), np.unique(tree.threshold[tree.feature == first]), part.max()]).astype(float)
        sizes.append(np.full(width, 1 / width) if width > 1 else np.diff(edges) / (np.ptp(edges) or 1.0))
        places.append(np.full((len(sizes[-1]), ends[-1]), np.nan))  # NaN in the columns of other settings
        places[-1][:, first:end] = np.eye(width) if width > 1 else (edges[1:] + edges[:-1])[:, None] / 2
    counts, size, place = [*map(len, sizes)], np.hstack(sizes), np.vstack(places)
    starts = np.cumsum([0, *counts[:-1]])
    inside = np.ones((tree.node_count, len(size)), bool)
    for node in np.flatnonzero(tree.feature >= 0):  # parents come before their children
        point = place[:, tree.feature[node]]  # NaN is in both children
        inside[tree.children_left[node]] = inside[node] & ~(point > tree.threshold[node])
        inside[tree.children_right[node]] = inside[node] & ~(point <= tree.threshold[node])
    inside, values = inside[tree.feature < 0], tree.value[tree.feature < 0, 0, 0]
    covered = np.maximum(np.add.reduceat(inside * size, starts, axis=1), 1e-12)  # [leaves, settings]
    volume = covered.prod(axis=1)
    values = values - np.average(values, weights=volume)
    marginal = (inside * np.repeat((values * volume)[:, None] / covered, counts, axis=1)).sum(axis=0)
    return np.add.reduceat(size * marginal**2, starts) / (volume @ values**2 or 1.0)
