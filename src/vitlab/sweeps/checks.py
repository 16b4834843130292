"""Check the settings of `sweep.py`, the launcher of a sweep, and a search: its space, objectives and database."""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

from hydra.core.config_loader import ConfigLoader

from vitlab.config.schema import OBJECTIVES, ConfigView, Node, format_value, node_problems, suggest
from vitlab.runs.folder import list_runs, read_config, write_problem
from vitlab.sweeps import ledger
from vitlab.sweeps.search.space import InvalidSearchSpace, Parameter, read_space

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # Hydra's own: one job after the other
METRICS = "metrics.csv"
OURS = "hydra_plugins.vitlab.launchers"
REMOTE = {f"{OURS}.SlurmLauncher": "submitit"}  # and the packages they need
GRID = "hydra_plugins.vitlab.grid.GridSweeper"
SWEEPERS = (GRID, "hydra_plugins.vitlab.optuna.OptunaSweeper")
# a database's URL without a place for a password
URL = re.compile(
    r"sqlite:///[^?]+|\w+(\+\w+)?://(([\w.-]|%40)+@)?([\w.-]*|\[[\da-f:.]+\])(:\d+)?/[\w-]+(\?sslmode=[\w-]+)?"
)


def sweep_action_problems(read: ConfigView) -> Iterator[str]:
    action, sweep, run = read("action", str), read("sweep", str), read("run", str)
    if action is None or {"sweep", "run"} & read.bad:
        return
    takes = f"{action} takes sweep=NAME" + " or run=FOLDER" * (action == "dashboard")
    if action != "dashboard" and (sweep is None or run is not None):
        yield f"{'sweep is not set' if run is None else f'run={run} is for dashboard'}; {takes}"
    elif (sweep is None) == (run is None):
        yield f"{'neither sweep nor run is' if sweep is None else 'sweep and run are both'} set; {takes}"
    elif action == "dashboard" and find_spec("wandb_workspaces") is None:
        yield "wandb-workspaces, which makes dashboards, is not installed: pip install -e '.[dashboard]'"
    else:
        try:
            folder = ledger.find_sweep(sweep) if sweep else Path(run or "")
            if run:
                read_config(folder)
            if action == "dashboard":
                from vitlab.sweeps.report import wandb_dashboard

                wandb_dashboard.wandb_project(folder)
        except (ledger.NoSweep, FileNotFoundError) as error:
            yield str(error)
        except ValueError as error:
            yield f"{f'run={run}' if run else f'sweep={sweep}'}: {error}"


def runs_to_compare(run: Sequence[str] | None, folder: str | None, newest: int) -> list[Path]:
    """The runs by name, or the newest of a folder that have a `metrics.csv`, as those of trainings."""
    runs = list_runs(Path(folder)) if folder else []
    return [path for path in runs if (path / METRICS).is_file()][-newest:] if run is None else [*map(Path, run)]


def comparison_problems(read: ConfigView) -> Iterator[str]:
    run, folder, newest = read("run", list), read("folder", str), read("newest", int)
    if {"run", "folder", "newest"} & read.bad:
        return
    runs = runs_to_compare(run, folder, newest or 2)
    if (run is None) == (folder is None):
        yield f"{'neither run nor folder is' if run is None else 'run and folder are both'} set; set one of them"
    elif len({path.resolve() for path in runs}) < len(runs):
        yield f"run={run} names a run twice; name each once"
    elif len(runs) < 2:
        yield f"{'folder' if run is None else 'run'}={folder or run} has {len(runs)} runs; name two or more to compare"
    for path in runs:
        if not (path / METRICS).is_file():
            yield f"run={path} is no training's folder: it has no {METRICS}"


def launcher_problems(node: Any, *, sweep: bool) -> tuple[list[str], bool]:
    """Return everything wrong with the node `hydra.launcher`, and whether it starts jobs on other machines."""
    if not isinstance(node, dict):
        return [f"hydra.launcher={format_value(node)} is not a mapping"], False
    target = str(node.get("_target_"))
    name, package, lines = target.rpartition(".")[2], REMOTE.get(target), []
    if target != BASIC and not sweep:
        lines.append(f"hydra.launcher={name} starts a sweep's jobs, and this is one run; add -m")
    if package and find_spec(package) is None:
        option = name.removesuffix("Launcher").lower()
        lines.append(f"hydra/launcher={option} is not installed: pip install {package}")
    absent = [program for program in ("sbatch", "srun") if which(program) is None]
    if name == "SlurmLauncher" and node.get("cluster", "slurm") == "slurm" and absent:
        remedy = "start the sweep on a login node, or use hydra/launcher=local (hydra.launcher.cluster=local to try it)"
        lines.append(f"hydra/launcher=slurm: this machine has no {' and no '.join(absent)}; {remedy}")
    if target.startswith(f"{OURS}."):
        lines += node_problems("hydra.launcher", node)
    return lines, package is not None


def problems(
    node: Node, lines: Sequence[str], config: Node, loader: ConfigLoader | None
) -> tuple[list[Parameter], list[str]]:
    """Return the searched parameters and the problems of a sweeper's node, given the command line's other overrides.

    `config` is the configuration with these overrides; it has the objective.
    """
    parameters, mistakes = list[Parameter](), list[str]()
    try:
        parameters, _ = read_space(lines, node.get("params"), loader)
    except InvalidSearchSpace as error:
        mistakes += error.problems
    if node["_target_"] == GRID:
        remedy = "a grid needs choice(...) or range(...); or add hydra/sweeper=optuna"
        endless = [p.key for p in parameters if not p.values and p.step is None]
        return parameters, mistakes + [f"{key} has infinitely many values: {remedy}" for key in endless]
    if not find_spec("optuna"):
        return [], ["hydra/sweeper=optuna needs Optuna, which is not installed: pip install 'optuna>=4.5'"]
    if not parameters and not mistakes:
        mistakes.append("hydra/sweeper=optuna has nothing to search; add KEY=interval(A,B), or hydra.sweeper.params")
    mistakes = node_problems("hydra.sweeper", {k: v for k, v in node.items() if v != {}}) + mistakes
    if isinstance(node.get("objectives"), dict | None):
        objectives = ledger.objectives_of(node, config["objective"])
        mistakes += objective_problems(node, objectives)
        if config["data"].get("val_fraction") == 0 and any(name.startswith("val/") for name in objectives):
            mistakes.append(
                "a search compares validation scores, and data.val_fraction=0 holds out no split; set it to 0.1"
            )
    if isinstance(storage := node.get("storage"), str):
        mistakes += filter(None, [storage_problem(storage)])
    return parameters, mistakes or [*constructor_problems(node)]


def objective_problems(node: Node, objectives: Mapping[str, str]) -> Iterator[str]:
    from vitlab.sweeps.report.table import COSTS  # statistics, which it imports, takes a start 10 ms

    known = (*OBJECTIVES, *COSTS)
    for name, goal in objectives.items():
        if name.startswith("test/"):
            yield f"hydra.sweeper.objectives.{name}: the test split can't test what was chosen by it; use val/"
        elif name not in known:
            yield f"hydra.sweeper.objectives.{name} is not measured{suggest(name, known)} (of {', '.join(known)})"
        if goal not in ("max", "min"):
            yield f"hydra.sweeper.objectives.{name}={goal} is not a direction; use max or min"
    if node.get("pruner"):
        first, remedy = next(iter(objectives)), "add hydra/sweeper/pruner=none"
        if len(objectives) > 1:
            yield f"hydra.sweeper.pruner: Optuna prunes by one objective, and there are {len(objectives)}; {remedy}"
        elif first in COSTS:
            yield f"hydra.sweeper.pruner: {first} isn't known while a trial trains; {remedy}"


def storage_problem(storage: str) -> str | None:
    """Return why a database can't be used, or None; write nothing to it."""
    from sqlalchemy import NullPool, create_engine, make_url
    from sqlalchemy.exc import SQLAlchemyError

    if problem := url_problem(storage):
        return problem
    if storage.startswith("sqlite"):  # connecting would create the file
        return write_problem("hydra.sweeper.storage", Path(make_url(storage).database or ".").absolute().parent)
    try:
        create_engine(storage, poolclass=NullPool).connect().close()
    except (SQLAlchemyError, ImportError) as error:
        return f"hydra.sweeper.storage={storage} can't be reached: {str(error).splitlines()[0]}"
    return None


def url_problem(storage: str) -> str | None:
    """Return why a URL may have a password in it, or None; nothing of what may be one is repeated.

    Drivers read passwords from the query too, under many names. Unquoted characters put a password into the database.
    """
    if URL.fullmatch(storage):
        return None
    scheme, separator, _ = storage.strip().partition("://")
    shown = f"{scheme}://..." if separator else "..."
    forms = "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    why = "each run's folder would show a password or other options; put them into ~/.pgpass or the variable PGPASSWORD"
    return f"hydra.sweeper.storage={shown} has another form than {forms}: {why}"


def constructor_problems(node: Node) -> Iterator[str]:
    """Yield the errors of the sampler's and the pruner's constructors."""
    from vitlab.config import instantiate
    from vitlab.sweeps.search.study import build_sampler

    if str(node["sampler"].get("_target_")).endswith(("GridSampler", "BruteForceSampler")):
        yield f"hydra.sweeper.sampler={node['sampler']['_target_']} can't be resumed; use hydra/sweeper=grid"
        return
    for part in ("sampler", "pruner"):
        try:
            if node.get(part):
                (build_sampler if part == "sampler" else instantiate.build_object)(node[part])
        except Exception as error:  # of many kinds
            yield f"hydra.sweeper.{part}: {str(error.__cause__ or error).splitlines()[0]}"
