"""A wandb dashboard as code: a workspace of a sweep or of one run, made of wandb-workspaces' panels.

The panels name what vitlab logs: the columns of `metrics.csv`, and `choices` and `configuration` of a sweep's jobs
(vitlab.runs.wandb). The workspace is a saved view of the project, and shows its present and future runs.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from vitlab.runs.folder import UnreadableRun, read_config
from vitlab.runs.wandb import choice_key, existing_run_id
from vitlab.storage import atomic
from vitlab.sweeps.ledger import Sweep
from vitlab.sweeps.report import table

FILE = "dashboard.json"
X = "images"  # the horizontal axis of curves
MAX_RUNS = 100  # in a panel
MEAN_STD: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}


def wandb_project(folder: Path) -> dict[str, str]:
    """Return the project and the entity (empty: the user's own account) of a run at wandb, or of a sweep's jobs.

    Raises `ValueError` if wandb does not track them.
    """
    loggers = list[Any]()
    for run in (folder, *folder.iterdir()):
        with suppress(OSError, UnreadableRun):
            loggers.append((read_config(run).get("logger") or {}).get("wandb"))
    if not loggers or None in loggers:
        raise ValueError("it isn't tracked by wandb, so there is nothing to show there; run it with logger=wandb")
    return {"project": loggers[0].get("project") or "vitlab", "entity": loggers[0].get("entity") or ""}


def sweep_dashboard(sweep: Sweep, project: dict[str, str]) -> Any:
    """Show a sweep's jobs: scores by setting, curves with their spread over seeds, pictures."""
    objective, direction = table.first_objective(sweep)
    main, configuration = summary_key(objective), wr.Config("configuration")
    scores = list(dict.fromkeys(map(summary_key, [*sweep.objectives, "val/acc", "test/acc"])))
    names = table.choice_names(sweep, seed=True)
    axes = {name: wr.Config(f"choices.{choice_key(name)}") for name in sorted(names, key=lambda n: n == table.SEED)}

    def bars(title: str, groupby: Any, orientation: str) -> Any:
        return wr.BarPlot(title=title, metrics=[main], groupby=groupby, orientation=orientation, **MEAN_STD)

    panels = [bars(f"{main} by configuration: mean and spread over seeds", configuration, "h")]
    panels.append(wr.ParameterImportancePlot(with_respect_to=main))
    for name, axis in axes.items():
        if name != table.SEED:
            panels.append(bars(f"{main} by {name}: mean over all other settings and seeds, and its spread", axis, "v"))
            panels.append(wr.ScatterPlot(title=f"{main} by {name}: each job", x=axis, y=wr.SummaryMetric(main)))
    curves = []
    for name in dict.fromkeys([objective, "val/acc", "train/loss"]):
        if "/" in name:
            title, log = f"{name}: mean and standard deviation over seeds", True if "loss" in name else None
            curves.append(wr.LinePlot(title=title, x=X, y=[name], log_y=log, groupby=configuration, **MEAN_STD))
    column = wr.ParallelCoordinatesPlotColumn
    columns = [column(axis, display_name=choice_key(name)) for name, axis in axes.items()]
    columns += [column(wr.SummaryMetric(score), display_name=score) for score in scores]
    settings, summaries = ([f"config:{axis.name}" for axis in axes.values()], [f"summary:{score}" for score in scores])
    runs = ws.RunsetSettings(
        filters=expr.And(expr.Metric("Group") == sweep.name),
        order=[expr.Ordering(expr.Summary(main), ascending=direction == "min")],
        pinned_columns=["run:displayName", "run:state", *settings, *summaries],
    )
    sections = {
        "Settings": [wr.ParallelCoordinatesPlot(columns=columns, title=f"{sweep.name}: settings and scores")],
        "Scores": panels,
        "Curves": curves,
        "Pictures": [wr.MediaBrowser(title="curves", media_keys=["curves"], num_columns=2)],
        "Runs": [wr.RunComparer(diff_only="split")],
    }
    return workspace(f"sweep {sweep.name}", project, sections, runs, jobs=len(sweep.jobs))


def run_dashboard(run_dir: Path, project: dict[str, str]) -> Any:
    """Show one run: losses, accuracies, learning rates, gradient norm, throughput and pictures."""
    run_id = existing_run_id(run_dir)
    if run_id is None:
        raise ValueError(f"run={run_dir} has no wandb run: it was not tracked there, or has not begun")
    panels: dict[str, dict[str, Any]] = {
        "loss": {"y": ["train/loss", "val/loss"], "log_y": True},
        "accuracy": {"y": ["val/acc", "val/acc5"]},
        "learning rate": {"metric_regex": "^lr/"},  # one for each parameter group
        "gradient norm before clipping": {"y": ["train/gradient_norm"], "log_y": True},
        "images per second, all devices": {"y": ["train/images_per_second"]},
        "model FLOPs utilization; share of time spent waiting for data": {"y": ["train/mfu", "train/data_wait"]},
    }
    sections = {
        "Scores": [wr.ScalarChart(title=name, metric=name) for name in ("test/acc", "best/val/acc", "best/val/loss")],
        "Training": [wr.LinePlot(title=title, x=X, **settings) for title, settings in panels.items()],
        "Pictures": [wr.MediaBrowser(title="pictures", media_keys=["curves"], num_columns=1)],
    }
    runs = ws.RunsetSettings(filters=expr.And(expr.Metric("ID") == run_id))
    return workspace(f"run {read_config(run_dir).get('name', run_dir.name)} {run_id}", project, sections, runs)


def summary_key(name: str) -> str:
    """Return the name of a number of `results.json` in the summary of a wandb run."""
    return "_runtime" if name == "seconds" else f"best/{name}" if name.startswith("val/") else name


def workspace(name: str, project: dict[str, str], sections: dict[str, list[Any]], runs: Any, *, jobs: int = 1) -> Any:
    """Return a view of sections of panels, without the panels that wandb would generate."""
    parts = []
    for title, panels in sections.items():
        columns = 1 if len(panels) == 1 else 2
        layout = ws.SectionLayoutSettings(columns=columns, rows=max(1, -(-len(panels) // columns)))
        parts.append(ws.Section(name=title, panels=panels, is_open=True, layout_settings=layout))
    return ws.Workspace(
        **project,
        name=name,
        sections=parts,
        settings=ws.WorkspaceSettings(x_axis=X, max_runs=min(MAX_RUNS, max(10, jobs))),
        runset_settings=runs,
        auto_generate_panels=False,
    )


def write_specification(dashboard: Any, file: Path) -> None:
    """Write the view as it is sent to wandb's server."""
    content = json.loads(dashboard._to_model().model_dump_json(by_alias=True, exclude_none=True))
    atomic.atomic_write(file, json.dumps(content, indent=2))


def save_dashboard(dashboard: Any) -> str:
    import wandb

    dashboard.entity = dashboard.entity or wandb.Api().default_entity or ""
    dashboard.save()
    return str(dashboard.url)
