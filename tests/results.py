"""Keep the results of runs in the repository, and write the tables and pictures of experiments/README.md from them.

    make results                              check what is kept, and write the tables and pictures again
    make results ARGS="runs/digits/* ..."     first keep these runs, or all jobs of these sweeps

A kept run is a line of experiments/runs/NAME.jsonl: its command, configuration, results and a short curve, and where it
ran. A command must still compose to the configuration that was trained, or this fails: then run it again, or remove its
line. A setting that is new since then counts as unchanged if it has its default.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, median, stdev
from textwrap import shorten
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitlab.cli.checks import CALLED
from vitlab.cli.register import register, register_resolvers
from vitlab.config import paths, signatures
from vitlab.config.overrides import fixed_settings
from vitlab.config.schema import Node
from vitlab.jobs import compose
from vitlab.jobs.identity import training_settings
from vitlab.runs.folder import list_runs, read_config, read_overrides, read_results
from vitlab.runs.plots import read_curves

README, RUNS = paths.EXPERIMENTS / "README.md", paths.EXPERIMENTS / "runs"
BEGIN, END = "<!-- written by `make results` -->\n", "<!-- end -->\n"
CURVES = ("train/loss", "val/loss", "val/acc")
POINTS = 60  # of a curve
UNNAMED = "default"  # runs without experiment=NAME
HOW = ("trainer.accelerator", "trainer.enable_progress_bar")
AWAY = ("hydra.", "data_dir", "logger", "resume", "sweep", "run_dir")  # settings that aren't a part of the question


def keep(folder: Path) -> None:
    """Add a finished run's line; a run that is kept already is skipped."""
    results = read_results(folder)
    if results.get("status") != "finished":
        raise ValueError(f"{folder} is not finished but {results.get('status', 'no run')}: only finished runs are kept")
    settings = {k: v for k, v in fixed_settings(read_overrides(folder)).items() if not k.startswith(AWAY)}
    scores = {k: v for k, v in results.items() if k.startswith(("val/", "test/", "raw/"))}
    others = (
        "commit",
        "started",
        "process",
        "seconds",
        "steps",
        "epochs",
        "parameters",
        "samples",
        "devices",
        "device",
        "precision",
    )
    versions = {name: results["versions"][name] for name in ("python", "torch", "lightning", "timm")}
    run: Node = {
        "settings": settings,
        **{name: results[name] for name in others},
        "versions": versions,
        "scores": scores,
    }
    run["curves"] = {k: thin(v.tolist()) for k, v in read_curves(folder / "metrics.csv").items() if k in CURVES}
    run["config"] = training_settings(read_config(folder))
    file = RUNS / f"{settings.get('experiment', UNNAMED)}.jsonl"
    kept = read(file)
    if all((old["started"], old["process"]) != (run["started"], run["process"]) for old in kept):
        RUNS.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(line) + "\n" for line in [*kept, run]))


def list_jobs(folder: Path) -> list[Path]:
    """The trainings in a folder."""
    return [run for run in list_runs(folder) if run.name != ".hydra" and "steps" in read_results(run)]


def thin(points: list[tuple[float, float]]) -> list[list[float]]:
    step = -(-len(points) // POINTS)
    return [[images, float(f"{value:.5g}")] for images, value in [*points[::step], points[-1]]]


def read(file: Path) -> list[Node]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def groups() -> dict[str, dict[str, list[Node]]]:
    """Kept runs by experiment, and by their settings except the seed."""
    found: dict[str, dict[str, list[Node]]] = {}
    for file in sorted(RUNS.glob("*.jsonl")):
        for run in read(file):
            settings = {k: v for k, v in run["settings"].items() if k not in ("seed", "experiment")}
            found.setdefault(file.stem, {}).setdefault(" ".join(f"{k}={v}" for k, v in settings.items()), []).append(
                run
            )
    return found


def problems(experiment: str, run: Node) -> list[str]:
    """How a kept run's configuration differs from the one that its command composes to now."""
    line = [f"{key}={value}" for key, value in run["settings"].items()]
    composed = compose.resolve_config(compose.compose("train", line), "runs")
    if isinstance(composed, str):
        return [composed]
    now, then = training_settings(composed), run["config"]
    differ = [k for k in then if now.get(k, "gone") != then[k]] + [
        k for k in now.keys() - then.keys() if now[k] != default(composed, k)
    ]
    return [f"{experiment} ({' '.join(line)}): {k} was {then.get(k)}, is {now.get(k, 'gone')}" for k in sorted(differ)]


def changes(found: dict[str, dict[str, list[Node]]]) -> list[str]:
    """The problems of all kept runs."""
    with compose.ensure_hydra():
        kept = [(name, run) for name, variants in found.items() for runs in variants.values() for run in runs]
        return [line for name, run in kept for line in problems(name, run)]


def default(config: Node, path: str) -> Any:
    """The default of a setting in the signature of its node; a value that no setting has, if there is none."""
    *parents, key = path.split(".")
    node: Any = config
    for parent in parents:
        node = node[parent]
    target = node.get("_target_") or CALLED.get(".".join(parents))
    known = signatures.defaults(target) if target else {}
    return known.get(key, object())


def percent(values: Iterable[float]) -> str:
    values = [100 * value for value in values]
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread}"


def table(found: dict[str, dict[str, list[Node]]]) -> str:
    rows = ["| experiment | command | n | test accuracy, % | range | validation, % | seconds a run |", "|" + "---|" * 7]
    for experiment, variants in found.items():
        for settings, runs in variants.items():
            tests = [run["scores"]["test/acc"] for run in runs]
            vals = [run["scores"]["val/acc"] for run in runs if "val/acc" in run["scores"]]
            seeds = ",".join(sorted({run["settings"].get("seed", "0") for run in runs}, key=int))
            name = "" if experiment == UNNAMED else f" experiment={experiment}"
            command = f"python src/train.py{' -m' if len(runs) > 1 else ''}{name} {settings} seed={seeds}"
            link = experiment if experiment == UNNAMED else f"[{experiment}]({experiment}.yaml)"
            spread = f"{100 * min(tests):.2f} to {100 * max(tests):.2f}" if len(tests) > 1 else ""
            seconds = f"{median(run['seconds'] for run in runs):.0f}"
            cells = [link, f"`{' '.join(command.split())}`", str(len(runs)), percent(tests), spread]
            rows.append(f"| {' | '.join([*cells, percent(vals) if vals else 'none held out', seconds])} |")
    return "\n".join(rows) + "\n"


def where(found: dict[str, dict[str, list[Node]]]) -> str:
    runs = [run for variants in found.values() for runs in variants.values() for run in runs]
    torch = ", ".join(sorted({run["versions"]["torch"] for run in runs}))
    devices = ", ".join(sorted({run["device"] for run in runs}))
    return f"\n{len(runs)} runs; device: {devices}; torch {torch}. ± is the standard deviation over seeds.\n"


def question(settings: str) -> str:
    """Settings without those that only say how it was run, for a label."""
    return " ".join(word for word in settings.split() if not word.startswith(HOW))


def draw(found: dict[str, dict[str, list[Node]]]) -> dict[str, Figure]:
    """The test accuracy of every run, and the curves of each experiment's first variant."""
    counts = [len(variants) for variants in found.values()]
    scores = Figure(figsize=(9, 1.2 + 0.6 * sum(counts)), layout="constrained")
    panels = scores.subplots(len(found), squeeze=False, gridspec_kw={"height_ratios": [1 + count for count in counts]})
    for (axis,), (name, variants) in zip(panels, found.items(), strict=True):
        for place, runs in enumerate(variants.values()):
            values = [100 * run["scores"]["test/acc"] for run in runs]
            axis.plot(values, [place] * len(values), "o", alpha=0.6)
            axis.plot([fmean(values)], [place], "k|", markersize=18)
        labels = [f"{name}\n{shorten(question(settings), 60)}".strip() for settings in variants]
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
        axis.set_ylim(len(labels) - 0.4, -0.6)
        axis.grid(alpha=0.3)
    panels[-1][0].set_xlabel("test accuracy, %: a point is a run, a line the mean")
    curves = Figure(figsize=(9, 3 * len(found)), layout="constrained")
    for row, (name, variants) in zip(curves.subplots(len(found), 2, squeeze=False), found.items(), strict=True):
        for axis, measures, label in ((row[0], CURVES[:2], "loss"), (row[1], CURVES[2:], "validation accuracy")):
            for run in next(iter(variants.values())):
                for measure, style in zip(measures, ("-", ":"), strict=False):
                    if points := run["curves"].get(measure):
                        axis.plot(*zip(*points, strict=True), style, linewidth=1)
            axis.set_ylabel(label)
            axis.set_xlabel("images seen")
            axis.set_title(f"{name}, training (line) and validation (dots)" if label == "loss" else name, fontsize=9)
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.grid(alpha=0.3)
    return {"results.png": scores, "curves.png": curves}


def text(found: dict[str, dict[str, list[Node]]]) -> str:
    """README.md with its tables written again. Raises `ValueError` if its marks are missing."""
    before, mark, rest = README.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{README} has no {BEGIN.strip()} ... {END.strip()}; put these lines where the table belongs")
    pictures = "\n![test accuracies](results.png)\n\n![curves](curves.png)\n"
    return f"{before}{BEGIN}\n{table(found)}{where(found)}{pictures}\n{END}{after}"


def main(arguments: list[str]) -> int:
    folders = [Path(argument) for argument in arguments]
    for folder in folders:
        for run in [folder] if (folder / "config.yaml").is_file() else list_jobs(folder):
            keep(run)
    found = groups()
    wrong = changes(found)
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        return 1
    README.write_text(text(found))
    for name, figure in draw(found).items():
        figure.savefig(paths.EXPERIMENTS / name, dpi=100)
    print(f"{README}: {sum(len(runs) for variants in found.values() for runs in variants.values())} runs")
    return 0


if __name__ == "__main__":
    register()
    register_resolvers()
    sys.exit(main(sys.argv[1:]))
