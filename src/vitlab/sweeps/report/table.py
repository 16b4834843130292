"""From the jobs of a sweep to its table: what varies, and mean, standard deviation and n over the seeds.

Jobs that differ in nothing but `seed` are one configuration. Only finished jobs count in its scores: a pruned or
crashed one has been trained less than the others.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

from vitlab.storage import atomic
from vitlab.sweeps.ledger import Job, Sweep

SEED = "seed"  # what a configuration is repeated over
COSTS = ("seconds", "images_per_second", "parameters")
COUNTS = ("steps", "epochs", "images", "devices")  # what belongs to a result and is no score

Direction = Literal["min", "max"]


@dataclass(frozen=True)
class MeanStd:
    """A number over n jobs. `deviation` is the sample's (n - 1), and None of one job."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Configuration:
    """The jobs that differ in their seed alone, with the spread of each number over those that finished."""

    choices: dict[str, str]
    jobs: list[Job]
    scores: dict[str, MeanStd]

    @property
    def label(self) -> str:
        """`optimizer.lr=0.001 model.depth=2`; empty where nothing but the seed varies."""
        return " ".join(f"{key}={value}" for key, value in self.choices.items())

    @property
    def finished(self) -> list[Job]:
        return [job for job in self.jobs if job.status == "finished"]


def choice_names(sweep: Sweep, *, seed: bool = False) -> list[str]:
    """The settings that vary, in the order of the command line; without the seed, unless it is asked for."""
    names = dict.fromkeys(key for job in sweep.jobs for key in job.choices)
    return [name for name in names if seed or name != SEED]


def finite_numbers(job: Job) -> dict[str, float]:
    """Scores, costs and counts of a job's `results.json`: what is one finite number."""
    wanted = (*COSTS, *COUNTS)
    return {
        key: value
        for key, value in job.results.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
        if math.isfinite(value) and ("/" in key or key in wanted) and not key.endswith(("/correct", "/count"))
    }


def mean_std(values: Sequence[float]) -> MeanStd:
    """Mean, standard deviation and n of one or more numbers."""
    return MeanStd(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def configurations(sweep: Sweep) -> list[Configuration]:
    """The sweep's configurations, the best by its first objective first, those without a score last."""
    names = choice_names(sweep)
    groups: dict[tuple[str | None, ...], list[Job]] = {}
    for job in sweep.jobs:
        groups.setdefault(tuple(job.choices.get(name) for name in names), []).append(job)
    found = []
    for jobs in groups.values():
        choices = {name: jobs[0].choices[name] for name in names if name in jobs[0].choices}
        finished = [finite_numbers(job) for job in jobs if job.status == "finished"]
        measured = dict.fromkeys(key for one in finished for key in one)
        scores = {key: mean_std([one[key] for one in finished if key in one]) for key in measured}
        found.append(Configuration(choices, jobs, scores))
    objective, direction = first_objective(sweep)
    return sorted(found, key=lambda one: sort_key(one.scores.get(objective), direction))


def first_objective(sweep: Sweep) -> tuple[str, Direction]:
    """What is sorted by."""
    return next(iter(sweep.objectives.items()))


def sort_key(score: MeanStd | None, direction: Direction) -> float:
    """A number that is the smaller the better; what has no score comes last."""
    if score is None:
        return math.inf
    return score.mean if direction == "min" else -score.mean


def best_job(sweep: Sweep, among: Iterable[Job] | None = None) -> Job | None:
    """The finished job with the best score in the first objective."""
    objective, direction = first_objective(sweep)
    jobs = [job for job in (sweep.jobs if among is None else among) if job.status == "finished"]
    scored = [(finite_numbers(job)[objective], job) for job in jobs if objective in finite_numbers(job)]
    if not scored:
        return None
    choose = min if direction == "min" else max
    return choose(scored, key=lambda pair: pair[0])[1]


def pareto_front(points: Sequence[Sequence[float]], directions: Sequence[Direction]) -> list[int]:
    """The indices of the points that no other one is better than in something and as good as in all else."""
    signed = [[v if d == "min" else -v for v, d in zip(p, directions, strict=True)] for p in points]

    def dominates(one: list[float], other: list[float]) -> bool:
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    return [i for i, point in enumerate(signed) if not any(dominates(other, point) for other in signed)]


# -------------------------------------------------------------------------------------------------------- curves


@dataclass(frozen=True)
class Curve:
    """A number against images seen: mean and standard deviation (None of one job) over jobs."""

    x: list[float]
    mean: list[float]
    deviation: list[float | None]


def read_metrics(job: Job) -> list[dict[str, str]]:
    """The rows of a job's `metrics.csv`; none where it has logged nothing yet."""
    file = job.folder / "metrics.csv"
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return [row for row in csv.DictReader(lines) if None not in row.values()]  # one may be half written


def mean_curve(metrics: Sequence[Sequence[Mapping[str, str]]], name: str) -> Curve:
    """A logged number of several jobs, at the places where all of them logged it."""
    places: dict[float, list[float]] = {}
    logging = 0
    for rows in metrics:
        points = {float(row["images"]): float(row[name]) for row in rows if row.get(name) and row.get("images")}
        logging += bool(points)
        for x, y in points.items():
            if math.isfinite(y):
                places.setdefault(x, []).append(y)
    spreads = [(x, mean_std(values)) for x, values in sorted(places.items()) if len(values) == logging]
    return Curve([x for x, _ in spreads], [s.mean for _, s in spreads], [s.deviation for _, s in spreads])


# --------------------------------------------------------------------------------------------------------- files


def write_results(sweep: Sweep, file: Path) -> None:
    """The table of configurations, best first: each choice, jobs, n, and NAME/mean and NAME/std of each number."""
    names, rows = choice_names(sweep), configurations(sweep)
    measured = dict.fromkeys([*sweep.objectives, *(key for row in rows for key in row.scores)])
    with io.StringIO(newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        columns = [f"{key}/{part}" for key in measured for part in ("mean", "std")]
        writer.writerow(["rank", *names, "jobs", "n", *columns])
        for rank, row in enumerate(rows, 1):
            cells: list[object] = [rank, *(row.choices.get(name, "") for name in names)]
            cells += [len(row.jobs), len(row.finished)]
            for key in measured:
                score = row.scores.get(key)
                cells += ["", ""] if score is None else [score.mean, "" if score.deviation is None else score.deviation]
            writer.writerow(cells)
        atomic.atomic_write(file, lines.getvalue())


def write_jobs(sweep: Sweep, file: Path) -> None:
    """A row for each job: its choices, how it ended, and every number."""
    names = choice_names(sweep, seed=True)
    measured = dict.fromkeys([*sweep.objectives, *(key for job in sweep.jobs for key in finite_numbers(job))])
    with io.StringIO(newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["id", *names, "status", "attempts", *measured, "error", "folder"])
        for job in sweep.jobs:
            cells: list[object] = [job.id, *(job.choices.get(name, "") for name in names), job.status, job.attempts]
            cells += [finite_numbers(job).get(key, "") for key in measured]
            writer.writerow([*cells, job.results.get("error", ""), job.folder])
        atomic.atomic_write(file, lines.getvalue())
