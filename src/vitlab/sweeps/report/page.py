"""The report of a sweep: a folder with one page that needs no network, `results.csv` and `jobs.csv`.

The page is `page.html`, a template that escapes every text. It loads nothing and runs nothing but its own script: its
security policy names the script by its hash.
"""

import base64
import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vitlab.runs.folder import read_metrics
from vitlab.runs.html_page import style_sheet
from vitlab.storage import atomic
from vitlab.sweeps.ledger import Direction, Status, Sweep, choices_text
from vitlab.sweeps.report import charts, table
from vitlab.sweeps.report.table import COSTS, Configuration, MeanStd, finite_numbers

PAGE, RESULTS, JOBS = "index.html", "results.csv", "jobs.csv"
GRAY_POINTS = 12_000  # of all gray curves of a chart
ARROWS: dict[Direction, str] = {"min": "↓", "max": "↑"}  # the better direction


def write_report(sweep: Sweep, folder: Path, more: Markup | None = None) -> Path:
    """Write the report of a sweep in any state, with `more` sections, and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    table.write_results(sweep, folder / RESULTS)
    table.write_jobs(sweep, folder / JOBS)
    sources = Path(__file__).parent
    script = (sources / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    loader = FileSystemLoader(sources)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": format_number, "spread": format_mean_std}
    rows, names = table.configurations(sweep), table.choice_names(sweep, seed=True)
    best = table.best_job(sweep, rows[0].jobs) if rows else None
    counts = Counter(job.status for job in sweep.jobs)
    measured = {key for row in rows for key in row.scores} | set(sweep.objectives)
    objective = table.first_objective(sweep)[0]
    versions = next((job.results["versions"] for job in sweep.jobs if job.results.get("versions")), None)
    pages = {job.id: job.folder / "report" / PAGE for job in sweep.jobs}  # their own
    matters = more is None or len(sweep.jobs) > len(names)  # fewer runs than settings can't say what matters
    wanted = dict.fromkeys([*sweep.objectives, "test/acc", "raw/acc", "val/acc", "val/loss", *COSTS])
    text = environment.get_template("page.html").render(
        sweep=sweep,
        more=more,
        kind="sweep" if more is None else "comparison",
        created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        style=style_sheet(),
        colors=charts.COLORS,
        arrows=ARROWS,
        objective=objective,
        rows=rows,
        names=table.choice_names(sweep),
        job_names=names,
        columns=[key for key in wanted if key in measured],
        values={name: setting_values(sweep, name) for name in names},
        front=pareto_configurations(sweep, rows),
        groups={job.id: k for k, row in enumerate(rows) for job in row.jobs},
        numbers=finite_numbers,
        counts={status: counts[status] for status in get_args(Status) if status in counts},
        seconds=sum(finite_numbers(job).get("seconds", 0.0) for job in sweep.jobs),
        best=best,
        curves=list(filter(None, curve_charts(sweep, rows))),
        effects=list(filter(None, effect_charts(sweep, rows))) if matters else [],
        cost=cost_chart(sweep, rows),
        pages={key: quote(os.path.relpath(page, folder)) for key, page in pages.items() if page.is_file()},
        unfinished=[job for job in sweep.jobs if job.status not in ("finished", "pruned", "waiting", "running")],
        versions=versions if isinstance(versions, dict) else {},
        choices_text=choices_text,
    )
    atomic.atomic_write(folder / PAGE, text)
    return folder / PAGE


def format_number(value: float | None, name: str = "") -> str:
    """Format a number: accuracies in percent, counts with separators, all else with four digits."""
    if value is None:
        return "\N{EN DASH}"
    if is_percent(name):
        return f"{100 * value:.2f} %"
    if name == "seconds" or (isinstance(value, float) and 1000 <= abs(value) < 1e15):
        return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def format_mean_std(score: MeanStd | None, name: str = "") -> str:
    """`98.33 ± 0.46 %`: mean and standard deviation, to the deviation's second digit."""
    if score is None or not score.deviation:
        return format_number(None if score is None else score.mean, name)
    if is_percent(name):
        return f"{100 * score.mean:.2f} ± {100 * score.deviation:.2f} %"
    decimals = max(0, 1 - math.floor(math.log10(score.deviation)))
    if decimals > 6:
        return f"{score.mean:.4g} ± {score.deviation:.2g}"
    return f"{score.mean:,.{decimals}f} ± {score.deviation:,.{decimals}f}"


def is_percent(name: str) -> bool:
    return name.rpartition("/")[2] in ("acc", "acc5")


def setting_values(sweep: Sweep, name: str) -> list[str]:
    """Return the values of a setting, numbers by size."""
    values = list(dict.fromkeys(job.choices[name] for job in sweep.jobs if name in job.choices))
    return values if as_numbers(values) is None else sorted(values, key=float)


def as_numbers(values: Sequence[str]) -> list[float] | None:
    with suppress(ValueError):
        numbers = [float(value) for value in values]
        return numbers if all(map(math.isfinite, numbers)) else None
    return None


def pareto_configurations(sweep: Sweep, rows: Sequence[Configuration]) -> set[int]:
    """Return the indices of the configurations that no other one dominates in several objectives."""
    if len(sweep.objectives) < 2:
        return set()
    complete = [k for k, row in enumerate(rows) if row.scores.keys() >= sweep.objectives.keys()]
    signs = [1 if direction == "min" else -1 for direction in sweep.objectives.values()]
    means = [[rows[k].scores[name].mean for name in sweep.objectives] for k in complete]
    points = np.reshape(means, (-1, len(signs))) * signs
    beaten = [((points <= point).all(axis=1) & (points < point).any(axis=1)).any() for point in points]
    return {k for k, is_beaten in zip(complete, beaten, strict=True) if not is_beaten}


def axis_name(sweep: Sweep, name: str) -> str:
    """Return a number's name with an arrow in its better direction, if that is known."""
    default: Direction | None = "min" if "loss" in name else "max" if is_percent(name) else None
    direction = sweep.objectives.get(name, default)
    return f"{name} {ARROWS[direction]}" if direction else name


def curve_charts(sweep: Sweep, rows: Sequence[Configuration]) -> Iterator[Markup | None]:
    """Draw objectives, accuracy and training loss of each configuration's finished jobs; of all, if none is."""
    jobs = [row.finished_jobs or row.jobs for row in rows]
    metrics = [[list(read_metrics(job.folder / "metrics.csv")) for job in group] for group in jobs]
    gray = max(10, GRAY_POINTS // max(1, len(rows)))
    for name in dict.fromkeys([*sweep.objectives, "val/acc", "train/loss"]):
        if not name.startswith("test/"):
            chart = charts.Chart("images seen", axis_name(sweep, name), log="y", percent=is_percent(name))
            for k, row in reversed([*enumerate(rows)]):  # the best one on top
                chart.draw_curve(k, row.label or sweep.name, table.mean_curve(metrics[k], name), gray=gray)
            yield chart.markup()


def effect_charts(sweep: Sweep, rows: Sequence[Configuration]) -> Iterator[Markup | None]:
    """Draw the scores of finished jobs by each setting: in a column for each of few values, else by the number."""
    objective, _ = table.first_objective(sweep)
    for name in table.choice_names(sweep):
        columns: dict[str, list[tuple[int, str, float]]] = {value: [] for value in setting_values(sweep, name)}
        for k, row in reversed([*enumerate(rows)]):
            for job in row.finished_jobs:
                if name in job.choices and (score := finite_numbers(job).get(objective)) is not None:
                    title = f"{job.name}: {format_number(score, objective)}"
                    columns[job.choices[name]].append((k, title, score))
        columns = {value: points for value, points in columns.items() if points}
        numbers = as_numbers(list(columns))
        few = len(columns) <= (12 if numbers is None else 6)
        if len(columns) < 2 or not (few or numbers):
            continue
        chart = charts.Chart(name, axis_name(sweep, objective), log="x", percent=is_percent(objective))
        if few:
            chart.draw_columns(columns)
        else:
            for x, points in zip(numbers or [], columns.values(), strict=True):
                for k, title, score in points:
                    chart.draw_point(k, title, x, score)
        yield chart.markup()


def cost_chart(sweep: Sweep, rows: Sequence[Configuration]) -> Markup | None:
    """Draw accuracy against seconds: a point for each configuration."""
    score = next((name for name in ("test/acc", "val/acc") if any(name in row.scores for row in rows)), "")
    chart = charts.Chart(f"seconds a job {ARROWS['min']}", axis_name(sweep, score), log="x", percent=is_percent(score))
    for k, row in reversed([*enumerate(rows)]):
        if "seconds" in row.scores and score in row.scores:
            x, y = row.scores["seconds"], row.scores[score]
            title = f"{row.label}: {format_mean_std(y, score)}, {format_mean_std(x, 'seconds')} seconds"
            chart.draw_point(k, title, x.mean, y.mean, y.deviation)
    return chart.markup()
