"""The report of a sweep: a folder with one page that needs no network, `results.csv` and `jobs.csv`.

The page is `page.html`, a template that escapes every text. It may load nothing and run nothing but its own script:
its security policy names the script by its hash.
"""

import base64
import hashlib
import logging
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vitlab.storage import atomic
from vitlab.sweeps.ledger import Job, Sweep
from vitlab.sweeps.report import charts, table
from vitlab.sweeps.report.importance import RELIABLE, setting_importance
from vitlab.sweeps.report.table import COSTS, Configuration, Curve, MeanStd

PAGE, RESULTS, JOBS = "index.html", "results.csv", "jobs.csv"
LONGEST = 200  # points of a curve that are drawn
PICTURES = 8 * 2**20  # bytes of pictures that are put into a page
ARROWS = {"min": "↓", "max": "↑"}  # where better is

log = logging.getLogger(__name__)


def write_report(sweep: Sweep, folder: Path) -> Path:
    """Writes the report of a sweep, at whatever point that is, and returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    table.write_results(sweep, folder / RESULTS)
    table.write_jobs(sweep, folder / JOBS)
    atomic.atomic_write(folder / PAGE, render_page(sweep))
    return folder / PAGE


def render_page(sweep: Sweep) -> str:
    """The whole page."""
    sources = Path(__file__).parent
    script = (sources / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(sources), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": format_number, "spread": format_mean_std, "label": heading, "date": format_date}
    rows = table.configurations(sweep)
    return environment.get_template("page.html").render(
        sweep=sweep,
        made=datetime.now(UTC),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        style=Markup((sources / "page.css").read_text()),
        colours=charts.COLOURS,
        arrows=ARROWS,
        reliable=RELIABLE,
        rows=rows,
        names=table.choice_names(sweep),
        job_names=table.choice_names(sweep, seed=True),
        columns=table_columns(sweep, rows),
        values={name: setting_values(sweep, name) for name in table.choice_names(sweep, seed=True)},
        front=pareto_configurations(sweep, rows),
        groups={job.id: k for k, row in enumerate(rows) for job in row.jobs},
        numbers=table.finite_numbers,
        counts=status_counts(sweep),
        seconds=sum(table.finite_numbers(job).get("seconds", 0.0) for job in sweep.jobs),
        best=table.best_job(sweep, rows[0].jobs) if rows else None,
        curves=curve_charts(sweep, rows),
        shares=importance_chart(sweep),
        effects=effect_charts(sweep, rows),
        costs=cost_charts(sweep, rows),
        pictures=job_images(table.best_job(sweep, rows[0].jobs) if rows else None),
        unfinished=[job for job in sweep.jobs if job.status not in ("finished", "pruned", "waiting", "running")],
        origin=provenance_rows(sweep),
    )


# -------------------------------------------------------------------------------------------------- words and numbers


def format_number(value: Any, name: str = "") -> str:
    """A number as it is read: accuracies in percent, counts with separators, all else with four digits."""
    if value is None:
        return "\N{EN DASH}"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if is_share(name):
        return f"{100 * value:.2f} %"
    if name == "seconds" or (isinstance(value, float) and 1000 <= abs(value) < 1e15):
        return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def format_mean_std(score: MeanStd | None, name: str = "") -> str:
    """`98.33 ± 0.46 %`: mean and standard deviation, to the deviation's second digit."""
    if score is None or not score.deviation:
        return format_number(None if score is None else score.mean, name)
    if is_share(name):
        return f"{100 * score.mean:.2f} ± {100 * score.deviation:.2f} %"
    decimals = max(0, 1 - math.floor(math.log10(score.deviation)))
    if decimals > 6:
        return f"{score.mean:.4g} ± {score.deviation:.2g}"
    return f"{score.mean:,.{decimals}f} ± {score.deviation:,.{decimals}f}"


def heading(name: str) -> str:
    """A number's name as a heading."""
    return "images/s" if name == "images_per_second" else name


def is_share(name: str) -> bool:
    """Whether a number is shown in percent."""
    return name.rpartition("/")[2] in ("acc", "acc5")


def format_date(moment: datetime | str) -> str:
    """`2026-11-25 01:30 UTC`."""
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            return str(moment)
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


# ------------------------------------------------------------------------------------------------------------- parts


def table_columns(sweep: Sweep, rows: Sequence[Configuration]) -> list[str]:
    """The numbers that the tables show: the objectives, accuracies, and what they cost."""
    measured = {key for row in rows for key in row.scores}
    wanted = [*sweep.objectives, "test/acc", "val/acc", "val/loss", *COSTS]
    return [key for key in dict.fromkeys(wanted) if key in measured or key in sweep.objectives]


def status_counts(sweep: Sweep) -> dict[str, int]:
    """How many jobs are in each state, in the order in which one looks for them."""
    order = ("finished", "pruned", "running", "waiting", "preempted", "interrupted", "crashed", "cancelled")
    found = {status: sum(job.status == status for job in sweep.jobs) for status in order}
    return {status: n for status, n in found.items() if n}


def setting_values(sweep: Sweep, name: str) -> list[str]:
    """The values of a setting, numbers by size."""
    found = list(dict.fromkeys(job.choices[name] for job in sweep.jobs if name in job.choices))
    try:
        return sorted(found, key=float)
    except ValueError:
        return found


def pareto_configurations(sweep: Sweep, rows: Sequence[Configuration]) -> set[int]:
    """Of several objectives: the configurations that no other one is better than in all of them."""
    if len(sweep.objectives) < 2:
        return set()
    whole = [k for k, row in enumerate(rows) if all(name in row.scores for name in sweep.objectives)]
    points = [[rows[k].scores[name].mean for name in sweep.objectives] for k in whole]
    return {whole[i] for i in table.pareto_front(points, list(sweep.objectives.values()))}


def curve_charts(sweep: Sweep, rows: Sequence[Configuration]) -> list[Markup]:
    """Curves of the objectives, accuracy and training loss; of finished jobs, where there is one, else of all."""
    metrics = [[table.read_metrics(job) for job in row.finished or row.jobs] for row in rows]
    logged = {name for jobs in metrics for found in jobs for line in found for name in line}
    wanted = dict.fromkeys([*sweep.objectives, "val/acc", "train/loss"])
    shown = []
    for name in (name for name in wanted if name in logged and not name.startswith("test/")):
        series = []
        for k, (row, jobs) in enumerate(zip(rows, metrics, strict=True)):
            series.append(mean_line(downsample(table.mean_curve(jobs, name)), row.label or sweep.name, k))
        drawn = charts.line_chart(series, x_name="images seen", y_name=axis_name(sweep, name), percent=is_share(name))
        shown += [drawn] if drawn is not None else []
    return shown


def mean_line(curve: Curve, name: str, group: int) -> charts.Line:
    """A mean curve with one standard deviation on both sides, where there are several jobs."""
    if not curve.x or None in curve.deviation:
        return charts.Line(name, group, curve.x, curve.mean)
    pairs = [(m, d or 0.0) for m, d in zip(curve.mean, curve.deviation, strict=True)]
    return charts.Line(name, group, curve.x, curve.mean, [m - d for m, d in pairs], [m + d for m, d in pairs])


def downsample(curve: Curve) -> Curve:
    """A curve of at most `LONGEST` points, the last one among them."""
    step = -(-len(curve.x) // LONGEST) or 1
    kept = sorted({*range(0, len(curve.x), step), *([len(curve.x) - 1] if curve.x else [])})
    return Curve([curve.x[i] for i in kept], [curve.mean[i] for i in kept], [curve.deviation[i] for i in kept])


def axis_name(sweep: Sweep, name: str) -> str:
    """The name of a number, with an arrow to where better is, if that is known."""
    losses = "min" if "loss" in name else "max" if is_share(name) else None
    direction = sweep.objectives.get(name, losses)
    return f"{name} {ARROWS[direction]}" if direction else name


def importance_chart(sweep: Sweep) -> dict[str, Any]:
    """The importance of each setting for the first objective, drawn; or the reason why there is none."""
    objective, _ = table.first_objective(sweep)
    try:
        found = setting_importance(sweep.jobs, objective)
    except ImportError:
        return {"chart": None, "n": 0, "left_out": {}, "missing": True}
    chart = charts.bar_chart(found.shares, quiet=table.SEED) if found.shares else None
    return {"chart": chart, "n": found.n, "left_out": found.left_out, "missing": False}


def effect_charts(sweep: Sweep, rows: Sequence[Configuration]) -> list[Markup]:
    """For each setting that varies: the first objective of each finished job, by the setting's value."""
    objective, _ = table.first_objective(sweep)
    drawn = []
    for name in table.choice_names(sweep):
        by_value: dict[str, list[charts.Point]] = {value: [] for value in setting_values(sweep, name)}
        for k, row in enumerate(rows):
            for job in row.finished:
                if name in job.choices and objective in (measured := table.finite_numbers(job)):
                    title = f"{job_label(job)}: {format_number(measured[objective], objective)}"
                    by_value[job.choices[name]].append(charts.Point(title, k, 0.0, measured[objective]))
        filled = [(value, points) for value, points in by_value.items() if points]
        places = [as_number(value) for value, _ in filled]
        if 1 < len(filled) <= (12 if None in places else 6):
            drawn.append(
                charts.strip_chart(filled, x_name=name, y_name=axis_name(sweep, objective), percent=is_share(objective))
            )
        elif len(filled) > 1 and None not in places:
            points = [
                charts.Point(p.label, p.group, x, p.y)
                for x, (_, ps) in zip(places, filled, strict=True)
                if x is not None
                for p in ps
            ]
            drawn.append(
                charts.scatter_chart(
                    points, x_name=name, y_name=axis_name(sweep, objective), percent=is_share(objective)
                )
            )
    return [chart for chart in drawn if chart is not None]


def as_number(text: str) -> float | None:
    """A setting's value where it is a number."""
    try:
        return float(text)
    except ValueError:
        return None


def job_label(job: Job) -> str:
    """A job by what varies."""
    return " ".join(f"{key}={value}" for key, value in job.choices.items()) or job.id


def cost_charts(sweep: Sweep, rows: Sequence[Configuration]) -> list[Markup]:
    """Accuracy against seconds, images per second and parameters: a point for each configuration."""
    score = next((name for name in ("test/acc", "val/acc") if any(name in row.scores for row in rows)), None)
    if score is None:
        return []
    drawn = []
    for cost, unit in (("seconds", "seconds a job"), ("images_per_second", "images/s"), ("parameters", "parameters")):
        found = [(k, row) for k, row in enumerate(rows) if cost in row.scores and score in row.scores]
        points = []
        for k, row in found:
            y = row.scores[score]
            low, high = (y.mean - y.deviation, y.mean + y.deviation) if y.deviation is not None else (None, None)
            title = f"{row.label}: {format_mean_std(y, score)}, {format_mean_std(row.scores[cost], cost)} {unit}"
            points.append(charts.Point(title, k, row.scores[cost].mean, y.mean, low, high))
        better: table.Direction = "max" if cost == "images_per_second" else "min"
        best = table.pareto_front([[p.x, p.y] for p in points], [better, "max"])
        arrow = ARROWS[better]
        chart = charts.scatter_chart(
            points, x_name=f"{unit} {arrow}", y_name=axis_name(sweep, score), front=best, percent=is_share(score)
        )
        drawn += [chart] if chart is not None else []
    return drawn


def job_images(job: Job | None) -> list[tuple[str, str]]:
    """A run's pictures by name, as `data:` addresses; what would make the page too large is left out, and told."""
    if job is None:
        return []
    found, room = [], PICTURES
    for file in sorted((job.folder / "figures").glob("*.png"), key=lambda f: (f.stem != "curves", f.name)):
        size = file.stat().st_size
        if size > room:
            log.warning("report: %s is left out of the page: its pictures would be more than 8 MiB", file)
            continue
        room -= size
        found.append((file.stem, f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"))
    return found


def provenance_rows(sweep: Sweep) -> dict[str, list[str]]:
    """Commits, versions, machines and devices of the jobs: more than one of a kind is worth knowing."""
    ran = [job.results for job in sweep.jobs if job.results]
    versions = [r["versions"] for r in ran if isinstance(r.get("versions"), dict)]
    found = {
        "commit": [str(r["commit"]) for r in ran if r.get("commit")],
        "versions": [", ".join(f"{name} {version}" for name, version in v.items()) for v in versions],
        "host": [str(r["host"]) for r in ran if r.get("host")],
        "device": [f"{r.get('devices', 1)} x {r['device']}, {r.get('precision')}" for r in ran if r.get("device")],
    }
    return {key: list(dict.fromkeys(values)) for key, values in found.items() if values}
