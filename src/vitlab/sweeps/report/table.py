"""The table of a sweep: its configurations (jobs that differ only in `seed`), and mean and spread of their scores.

Only finished jobs count in the scores: a pruned or crashed one was trained less than the others.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from vitlab.storage.atomic import write_csv
from vitlab.sweeps.ledger import Direction, Job, Sweep, choices_text

SEED = "seed"  # differs among the jobs of a configuration
COSTS = ("seconds", "images_per_second", "parameters")
COUNTS = ("steps", "epochs", "images", "devices")  # results that are no scores


@dataclass(frozen=True)
class MeanStd:
    """Mean and standard deviation (of a sample; None for one) of a number over jobs."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Configuration:
    """The jobs that differ only in their seed, and each number over those that finished."""

    choices: dict[str, str]
    jobs: list[Job]
    scores: dict[str, MeanStd]

    @property
    def label(self) -> str:
        """`optimizer.lr=0.001 model.depth=2`, or the name of a compared run; empty if only the seed varies."""
        return self.choices.get("run") or choices_text(self.choices)

    @property
    def finished_jobs(self) -> list[Job]:
        return [job for job in self.jobs if job.status == "finished"]


def choice_names(sweep: Sweep, *, seed: bool = False) -> list[str]:
    names = dict.fromkeys(key for job in sweep.jobs for key in job.choices)
    return [name for name in names if seed or name != SEED]


def finite_numbers(job: Job) -> dict[str, float]:
    return {
        key: value
        for key, value in job.results.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if ("/" in key or key in (*COSTS, *COUNTS)) and not key.endswith(("/correct", "/count"))
    }


def mean_std(values: Sequence[float]) -> MeanStd:
    return MeanStd(fmean(values), stdev(values) if len(values) > 1 else None)


def configurations(sweep: Sweep) -> list[Configuration]:
    """Return the sweep's configurations, best first by the first objective, those without a score last."""
    names = choice_names(sweep)
    groups: dict[tuple[str | None, ...], list[Job]] = {}
    for job in sweep.jobs:
        groups.setdefault(tuple(job.choices.get(name) for name in names), []).append(job)
    rows = []
    for jobs in groups.values():
        choices = {name: jobs[0].choices[name] for name in names if name in jobs[0].choices}
        finished = [finite_numbers(job) for job in jobs if job.status == "finished"]
        measured = dict.fromkeys(key for one in finished for key in one)
        scores = {key: mean_std([one[key] for one in finished if key in one]) for key in measured}
        rows.append(Configuration(choices, jobs, scores))
    objective, direction = first_objective(sweep)
    sign = 1 if direction == "min" else -1
    return sorted(rows, key=lambda row: sign * row.scores[objective].mean if objective in row.scores else math.inf)


def first_objective(sweep: Sweep) -> tuple[str, Direction]:
    return next(iter(sweep.objectives.items()))


def best_job(sweep: Sweep, among: Iterable[Job] | None = None, *, objective: str = "") -> Job | None:
    """Return the job with the best score, by the first objective if none is given."""
    objective = objective or first_objective(sweep)[0]
    jobs = sweep.jobs if among is None else among
    scored = [job for job in jobs if job.status == "finished" and objective in finite_numbers(job)]
    choose = min if sweep.objectives[objective] == "min" else max
    return choose(scored, key=lambda job: finite_numbers(job)[objective], default=None)


def mean_curve(metrics: Sequence[Sequence[Mapping[str, str]]], name: str) -> dict[float, MeanStd]:
    """Return a logged number by images seen, at the points where all jobs that log it did."""
    places: dict[float, list[float]] = {}
    logging = 0
    for rows in metrics:
        points = {float(row["images"]): float(row[name]) for row in rows if row.get(name) and row.get("images")}
        logging += bool(points)
        for x, y in points.items():
            if math.isfinite(y):
                places.setdefault(x, []).append(y)
    return {x: mean_std(values) for x, values in sorted(places.items()) if len(values) == logging}


def write_results(sweep: Sweep, file: Path) -> None:
    """Write the table of configurations, best first: choices, jobs, n, and NAME/mean and NAME/std of each number."""
    names, rows = choice_names(sweep), configurations(sweep)
    measured = dict.fromkeys([*sweep.objectives, *(key for row in rows for key in row.scores)])
    columns = [f"{key}/{part}" for key in measured for part in ("mean", "std")]
    lines: list[Sequence[object]] = [["rank", *names, "jobs", "n", *columns]]
    for rank, row in enumerate(rows, 1):
        scores = [row.scores.get(key) for key in measured]
        numbers = [part for score in scores for part in ((score.mean, score.deviation) if score else (None, None))]
        lines.append([rank, *map(row.choices.get, names), len(row.jobs), len(row.finished_jobs), *numbers])
    write_csv(file, lines)


def write_jobs(sweep: Sweep, file: Path) -> None:
    """Write a row for each job: its choices, how it ended, and every number."""
    names = choice_names(sweep, seed=True)
    measured = dict.fromkeys([*sweep.objectives, *(key for job in sweep.jobs for key in finite_numbers(job))])
    lines: list[Sequence[object]] = [["id", *names, "status", "attempts", *measured, "error", "folder"]]
    for job in sweep.jobs:
        cells = [job.id, *map(job.choices.get, names), job.status, job.attempts]
        lines.append([*cells, *map(finite_numbers(job).get, measured), job.results.get("error"), job.folder])
    write_csv(file, lines)
