"""Check the settings of `sweep.py`, and the launcher of a sweep (`hydra/launcher=...`)."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

from vitlab.config.schema import format_value, node_problems
from vitlab.config.view import ConfigView
from vitlab.runs.folder import list_runs, read_config
from vitlab.sweeps import ledger

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # Hydra's own: one job after the other
METRICS = "metrics.csv"
OURS = "hydra_plugins.vitlab.launchers"
REMOTE = {f"{OURS}.SlurmLauncher": "submitit"}  # and the packages they need


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
