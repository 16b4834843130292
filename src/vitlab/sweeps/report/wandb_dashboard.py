"""A wandb dashboard as code: a workspace of a sweep, or of one run, made of wandb-workspaces' panels.

What the panels name is what vitlab logs: the columns of `metrics.csv`, and of a sweep's jobs `choices` and
`configuration` (vitlab.runs.wandb). The workspace is a saved view of the project: it shows the runs that are there, and
those that come.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlab.config.schema import Node
from vitlab.runs.wandb import as_number, choice_key, existing_run_id
from vitlab.storage import atomic
from vitlab.sweeps.ledger import Sweep
from vitlab.sweeps.report import table

FILE = "dashboard.json"
INSTALL = "pip install -e '.[dashboard]'"
X = "images"  # what curves are drawn against
MOST = 100  # runs in a panel
RATES = "^lr/"  # one for each parameter group


@dataclass(frozen=True)
class WandbProject:
    """Where wandb keeps the runs; without an entity, the user's own."""

    project: str
    entity: str | None


def wandb_project(configs: Sequence[Node]) -> WandbProject:
    """The wandb project of runs, by their configurations. Raises `ValueError` where they aren't tracked there."""
    nodes = [node for config in configs if (node := (config.get("logger") or {}).get("wandb")) is not None]
    if not nodes or len(nodes) < len(configs):
        raise ValueError("it isn't tracked by wandb, so there is nothing to show there; run it with logger=wandb")
    return WandbProject(nodes[0].get("project") or "vitlab", nodes[0].get("entity"))


def import_workspaces() -> tuple[Any, Any, Any]:
    """wandb-workspaces: its panels, its workspaces, and what filters and orders runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what pydantic says of it, in 0.4
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
    return wr, ws, expr


def sweep_dashboard(sweep: Sweep, place: WandbProject) -> Any:
    """A sweep's jobs: scores by setting with their spread over seeds, curves with bands, the best run's pictures."""
    wr, ws, expr = import_workspaces()
    names = table.choice_names(sweep)
    objectives = list(sweep.objectives)
    objective, main = objectives[0], summary_key(objectives[0])
    scores = list(dict.fromkeys(summary_key(name) for name in [*objectives, "val/acc", "test/acc"]))
    best = table.best_job(sweep)
    best_id = None if best is None else existing_run_id(best.folder)
    axes = [wandb_choice_key(name) for name in [*names, *(["seed"] if has_seeds(sweep) else [])]]
    columns = [
        wr.ParallelCoordinatesPlotColumn(
            axis, display_name=axis.name.removeprefix("choices."), log=log_scale(sweep, axis)
        )
        for axis in axes
    ]
    columns += [wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(score), display_name=score) for score in scores]

    by_setting: list[Any] = []
    for name in names:
        by_setting.append(
            wr.BarPlot(
                title=f"{main} by {name}: mean over all other settings and seeds, and its spread",
                metrics=[main],
                groupby=wandb_choice_key(name),
                groupby_aggfunc="mean",
                groupby_rangefunc="stddev",
                orientation="v",
            )
        )
        by_setting.append(
            wr.ScatterPlot(
                title=f"{main} by {name}: each job",
                x=wandb_choice_key(name),
                y=wr.SummaryMetric(main),
                log_x=log_scale(sweep, wandb_choice_key(name)),
            )
        )
    spread = wr.BarPlot(
        title=f"{main} by configuration: mean and spread over seeds",
        metrics=[main],
        groupby=wr.Config("configuration"),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        orientation="h",
    )
    curves = [band_panel(name) for name in dict.fromkeys([objective, "val/acc", "train/loss"]) if "/" in name]
    costs = [
        wr.ScatterPlot(title=f"test/acc against {cost}", x=wr.SummaryMetric(cost), y=wr.SummaryMetric("test/acc"))
        for cost in ("images_per_second", "parameters", "_runtime")
    ]
    sections = [
        panel_section(
            "Settings", [wr.ParallelCoordinatesPlot(columns=columns, title=f"{sweep.name}: settings and scores")]
        ),
        panel_section("Scores", [spread, wr.ParameterImportancePlot(with_respect_to=main), *by_setting]),
        panel_section("Curves", curves),
        panel_section("Accuracy and cost", costs),
        panel_section("Pictures", [wr.MediaBrowser(title="curves", media_keys=["curves"], num_columns=2)]),
        panel_section("Runs", [wr.RunComparer(diff_only="split")]),
    ]
    direction = sweep.objectives[objective]
    settings = ws.RunsetSettings(
        filters=expr.And(expr.Metric("Group") == sweep.name),
        order=[expr.Ordering(expr.Summary(main), ascending=direction == "min")],
        pinned_columns=[
            "run:displayName",
            "run:state",
            *(f"config:{axis.name}" for axis in axes),
            *(f"summary:{score}" for score in scores),
        ],
        # the best one stays in sight, and its pictures come first
        pinned_runs=[] if best_id is None else [best_id],
    )
    return workspace(f"sweep {sweep.name}", place, sections, settings, jobs=len(sweep.jobs))


def run_dashboard(run_dir: Path, config: Node, place: WandbProject) -> Any:
    """One run: losses, accuracies, learning rates, gradient norm, throughput and pictures."""
    wr, ws, expr = import_workspaces()
    run_id = existing_run_id(run_dir)
    if run_id is None:
        raise ValueError(f"run={run_dir} has no wandb run: it was not tracked there, or has not begun")
    lines = [
        wr.LinePlot(title="loss", x=X, y=["train/loss", "val/loss"], log_y=True),
        wr.LinePlot(title="accuracy", x=X, y=["val/acc", "val/acc5"]),
        wr.LinePlot(title="learning rate", x=X, metric_regex=RATES),
        wr.LinePlot(title="gradient norm before clipping", x=X, y=["train/gradient_norm"], log_y=True),
        wr.LinePlot(title="images per second, all devices", x=X, y=["train/images_per_second"]),
        wr.LinePlot(
            title="model FLOPs utilisation; share of time without data", x=X, y=["train/mfu", "train/data_wait"]
        ),
    ]
    scores = [wr.ScalarChart(title=name, metric=name) for name in ("test/acc", "best/val/acc", "best/val/loss")]
    sections = [
        panel_section("Scores", scores),
        panel_section("Training", lines),
        panel_section("Pictures", [wr.MediaBrowser(title="pictures", media_keys=["curves"], num_columns=1)]),
    ]
    settings = ws.RunsetSettings(filters=expr.And(expr.Metric("ID") == run_id))
    return workspace(f"run {config.get('name', run_dir.name)} {run_id}", place, sections, settings)


def summary_key(name: str) -> str:
    """What the number of a job's `results.json` is called in its wandb run's summary."""
    return "_runtime" if name == "seconds" else f"best/{name}" if name.startswith("val/") else name


def band_panel(name: str) -> Any:
    """Curves of a number, one for each configuration, in a band of one standard deviation over its seeds."""
    wr, _, _ = import_workspaces()
    return wr.LinePlot(
        title=f"{name}: mean and standard deviation over seeds",
        x=X,
        y=[name],
        log_y=True if "loss" in name else None,
        groupby=wr.Config("configuration"),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
    )


def panel_section(name: str, panels: Sequence[Any]) -> Any:
    """An open section, of two panels in a row."""
    _, ws, _ = import_workspaces()
    columns = 1 if len(panels) == 1 else 2
    layout = ws.SectionLayoutSettings(columns=columns, rows=max(1, -(-len(panels) // columns)))
    return ws.Section(name=name, panels=list(panels), is_open=True, layout_settings=layout)


def workspace(name: str, place: WandbProject, sections: Sequence[Any], runset: Any, *, jobs: int = 1) -> Any:
    """The view, without the panels that wandb would make of everything that is logged."""
    _, ws, _ = import_workspaces()
    settings = ws.WorkspaceSettings(x_axis=X, max_runs=min(MOST, max(10, jobs)))
    return ws.Workspace(
        entity=place.entity or "",
        project=place.project,
        name=name,
        sections=list(sections),
        settings=settings,
        runset_settings=runset,
        auto_generate_panels=False,
    )


def wandb_choice_key(name: str) -> Any:
    """Where wandb finds a choice in a job's configuration."""
    wr, _, _ = import_workspaces()
    return wr.Config(f"choices.{choice_key(name)}")


def has_seeds(sweep: Sweep) -> bool:
    return table.SEED in table.choice_names(sweep, seed=True)


def log_scale(sweep: Sweep, axis: Any) -> bool | None:
    """Whether a setting's values are numbers above 0 that span a factor of ten."""
    key = axis.name.removeprefix("choices.")
    chosen = [as_number(value) for job in sweep.jobs for name, value in job.choices.items() if choice_key(name) == key]
    values = [value for value in chosen if not isinstance(value, str)]
    return True if len(values) == len(chosen) > 0 and min(values) > 0 and max(values) / min(values) >= 10 else None


# ---------------------------------------------------------------------------------------------------- to wandb, or not


def specification(dashboard: Any) -> Node:
    """The view as wandb's server would be sent it."""
    found = json.loads(dashboard._to_model().model_dump_json(by_alias=True, exclude_none=True))
    assert isinstance(found, dict)
    return found


def write_specification(dashboard: Any, file: Path) -> None:
    """Keeps the view in a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.atomic_write(file, json.dumps(specification(dashboard), indent=2))


def save_dashboard(dashboard: Any) -> str:
    """Saves the view where the user is logged in, and returns its address."""
    import wandb

    if not dashboard.entity:
        dashboard.entity = wandb.Api().default_entity or ""
    dashboard.save()
    return str(dashboard.url)
