"""A doctor's visit: a configuration examined, changes tried, what comes of it in a table, a file and a picture."""

import inspect
import json
import logging
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from vitlab import advising, flops
from vitlab.advising import Change, Trial
from vitlab.config import paths
from vitlab.data.datamodule import DataModule
from vitlab.data.packing.encode import image_bytes
from vitlab.data.source import Split, loader_facts
from vitlab.profiling import PARTS, Patient, Variant
from vitlab.resume import quoted
from vitlab.runs import replace
from vitlab.schema import Node, shown

log = logging.getLogger(__name__)

SAMPLE = 256  # files that are made smaller, at most
MARGIN = 256 / 224  # as wide as ImageNet's usual size is above what is cut from it
QUALITY = 90  # of their JPEG, as src/prepare.py writes it


def visit(
    patient: Patient,
    folder: Path,
    *,
    changes: Sequence[Change],
    workers: Sequence[int] | None,
    steps: int,
    warmup: int,
    rounds: int,
    trace: bool,
) -> Node:
    """Examines, tries, writes `doctor.json` and `figures/doctor.png`. Returns what `doctor.json` holds."""
    cost, watched, found = advising.examine(patient, steps=steps, warmup=warmup)
    timing: dict[str, int] = {"rounds": rounds, "steps": steps, "warmup": warmup}
    with TemporaryDirectory(prefix="vitlab-doctor-") as files:
        patient.smaller = smaller(patient, Path(files)) if "smaller" in changes else None
        trials, rates, scales = advising.compared(patient, cost, changes, workers, **timing)
        if (whole := advising.together(trials)) is not None:
            alone = [t.variant for t in trials if set(t.variant.settings()) <= set(whole.settings())]
            pieces = [scales[str(variant)] for variant in alone if str(variant) in scales]
            both = [(whole, advising.predicted(cost, whole, advising.combined(pieces)))]
            trials += advising.tried(patient, both, **timing)[0]
    batch_seconds, batches = patient.evaluation(batches=max(3, min(steps, 8)))
    if trace:
        patient.train(Variant(), steps=steps, warmup=warmup, trace=folder / "trace")
    data, rate = patient.datamodule, median(rates)
    step, epoch = watched.images / rate, data.steps_per_epoch
    peak = flops.peak_flops(patient.device, str(patient.trainer["precision"]))
    evaluation, saving = batch_seconds * batches, watched.saving
    packing = packed(data) if patient.smaller is not None else ""
    crowd, times = advising.crowded(cost, step), {"evaluation": evaluation, "saving": saving, "step": step}
    told = advising.advice(found, trials, **times, epoch=epoch, packing=packing, crowd=crowd)
    report: Node = {
        "images_per_second": rate,
        "mfu": patient.flops * rate / peak if peak else None,
        "step_ms": 1000 * step,
        "batch_size": data.batch_size,
        "workers": watched.workers,
        "cores": cost.cores,
        "threads": torch.get_num_threads(),
        "precision": str(patient.trainer["precision"]),
        "device": str(patient.device),
        "bottleneck": advising.bottleneck(found),
        "shares": found,
        "parts_ms": {name: 1000 * step * found[name] for name in PARTS},
        "without_workers_ms": {name: 1000 * cost.parts[name] for name in PARTS},
        "one_worker_ms": 1000 * cost.sent,
        "loading_together": cost.beside,
        "power_of_cores": cost.together,
        "epoch_seconds": {"training": step * epoch, "evaluation": evaluation, "checkpoint": saving},
        "trials": [
            {
                "change": str(trial.variant),
                "predicted": trial.predicted,
                "measured": trial.measured,
                "spread": trial.spread,
                "verdict": trial.verdict,
            }
            for trial in trials
        ],
        "advice": told,
    }
    replace(folder / "doctor.json", json.dumps(report, indent=2))
    picture(found, trials, folder / "figures" / "doctor.png")
    for line in table(report, trials):
        log.info("%s", line)
    return report


def smaller(patient: Patient, folder: Path) -> Split | None:
    """Some of the training files at the size that they are trained on and a little more; None where they are no files
    or already as small.
    """
    split = patient.datamodule.split("train")
    if split.files is None:
        return None
    kept = range(0, len(split), -(-len(split) // SAMPLE))
    files = {place: split.files[place] for place in kept}  # of a million, these alone are looked at
    if not all(Path(file).is_file() for file in files.values()):
        return None
    side = enough(patient.datamodule)
    folder.mkdir(parents=True, exist_ok=True)
    made, larger = [], 0
    for place in kept:
        with Image.open(files[place]) as image:
            larger += min(image.size) > side
        target = folder / f"{place}.jpg"
        target.write_bytes(image_bytes(split, place, size=side, quality=QUALITY))
        made.append(str(target))
    if 2 * larger < len(made):
        return None
    repeated = torch.arange(len(split)) % len(made)  # an epoch stays as long as it is
    labels = split.labels[torch.tensor(list(kept))][repeated]
    return Split(None, labels, [made[i] for i in repeated.tolist()])


def enough(data: DataModule) -> int:
    """Pixels of the shorter side of files that are large enough for what is trained on."""
    return round(max(data.image_size) * MARGIN)


def packed(data: DataModule) -> str:
    """The command that brings the files to that size, and what to train on then; empty where no `data=` has them."""
    source, side = data.load_source, enough(data)
    if not isinstance(source, partial) or loader_facts(source).in_memory is not False:
        return ""
    chosen = {key: value for key, value in source.keywords.items() if key != "data_dir"}
    defaults = {name: known.default for name, known in inspect.signature(source.func).parameters.items()}
    settings = {f"data.source.{key}": value for key, value in chosen.items() if value != defaults[key]}
    if data.on_error == "skip":
        settings |= {"data.on_error": "skip", "data.max_skipped": data.max_skipped}
    place = Path(source.keywords["data_dir"])
    place = place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place
    out = place.resolve() if place.name in ("", "..") else place
    target = out.with_name(f"{out.name}-{side}")
    words = {"data": source.func.__name__, "data_dir": str(place), **settings}
    words |= {"to": "folder", "size": side, "out": str(target)}
    line = shlex.join(f"{key}={typed(value)}" for key, value in words.items())
    return f"{paths.COMMAND.format('prepare')} {line}, then train with {shlex.quote(f'data_dir={typed(str(target))}')}"


def typed(value: Any) -> str:
    """A value in Hydra's grammar; a path or name only quoted where it has to be."""
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w/.-]+", value) else quoted(Path(value))
    return f"[{','.join(typed(str(item)) for item in value)}]" if isinstance(value, list) else shown(value)


def table(report: Node, trials: Sequence[Trial]) -> Iterator[str]:
    """The report as lines of text."""
    mfu = f", MFU {report['mfu']:.0%}" if report["mfu"] else ""
    workers = f"{report['workers']} loading process{'' if report['workers'] == 1 else 'es'}"
    yield (
        f"as configured: {report['images_per_second']:,.0f} images/s{mfu}; {report['step_ms']:.1f} ms a step of "
        f"{report['batch_size']} images, {workers}, {report['cores']} cores"
    )
    for name in PARTS:
        yield f"  {advising.NAMES[name]:<46} {report['parts_ms'][name]:9.2f} ms {report['shares'][name]:5.0%}"
    yield (
        f"  one loading process alone makes such a batch in {report['one_worker_ms']:.2f} ms; "
        f"{report['loading_together']} at once are {report['power_of_cores']:.1f} times as fast"
    )
    spent: dict[str, float] = report["epoch_seconds"]
    yield "  an epoch: " + ", ".join(f"{name} {value:.3g} s" for name, value in spent.items())
    if trials:
        yield f"  {'change':<46} {'predicted':>9}  {'measured':>8}  spread"
    for trial in trials:
        guess = f"{trial.predicted:.2f} x" if trial.predicted is not None else ""
        gain = f"{trial.measured:.2f} x" if trial.measured is not None else ""
        yield f"  {trial.variant!s:<46} {guess:>9}  {gain:>8}  {trial.spread:.2f}  {trial.verdict}"
    for line in report["advice"]:
        yield f"- {line}"


def picture(found: dict[str, float], trials: Sequence[Trial], figure_file: Path) -> None:
    """The shares of a step; beneath, each change as predicted and as measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5 + 0.4 * len(trials)), layout="constrained")
    ratios: Any = {"height_ratios": [4, max(1, len(trials))]}
    above, below = figure.subplots(2, 1, gridspec_kw=ratios)
    above.barh([advising.NAMES[name] for name in PARTS], [found[name] for name in PARTS], color="tab:blue")
    above.invert_yaxis()
    above.set_xlabel("share of a step")
    names, known = [str(trial.variant) for trial in trials], [t for t in trials if t.measured is not None]
    below.barh([y - 0.2 for y in range(len(trials))], [t.predicted or 0 for t in trials], height=0.4, label="predicted")
    rows = [y + 0.2 for y, trial in enumerate(trials) if trial.measured is not None]
    whiskers = [t.spread / 2 for t in known]
    below.barh(
        rows, [t.measured or 0 for t in known], height=0.4, xerr=whiskers, label="measured (whiskers: quartiles)"
    )
    below.set_yticks(range(len(trials)), names)
    below.invert_yaxis()
    below.axvline(1, color="black", linewidth=0.8)
    below.set_xlabel("images a second, as a multiple of the configuration's")
    if trials:
        figure.legend(loc="outside lower center", ncols=2)  # on no bar or whisker
    for axis in (above, below):
        axis.grid(alpha=0.3, axis="x")
    figure_file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(figure_file, dpi=110)
