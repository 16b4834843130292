"""Diagnose a configuration: where its time goes and what changes gain, as text, JSON and a picture."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch.profilers import PyTorchProfiler
from matplotlib.figure import Figure

from vitlab.config.schema import Node
from vitlab.diagnostics import advise
from vitlab.diagnostics.advise import Trial, command_line
from vitlab.diagnostics.measure import PARTS, STEP, ProfiledRun
from vitlab.distributed import environment
from vitlab.models import flops
from vitlab.storage.atomic import atomic_write

log = logging.getLogger(__name__)

WORTH = 0.1  # smallest share of an epoch for advice
COLORS = {"faster": "tab:green", "slower": "tab:red"}


def diagnose(
    run: ProfiledRun,
    folder: Path,
    *,
    changes: Sequence[str],
    workers: Sequence[int] | None,
    steps: int,
    warmup: int,
    rounds: int,
    trace: bool,
) -> Node:
    """Measure the configuration, try changes, log the report, and write `doctor.json` and `figures/doctor.png`."""
    run.train({}, steps=1, warmup=1)  # allocations, kernels, files
    profiled = run.train({}, steps=steps, warmup=warmup, stages=True)
    total = sum(profiled.parts.values())
    shares = {name: seconds / total for name, seconds in profiled.parts.items()}
    prepare, small_dir = "", None
    with TemporaryDirectory(prefix="vitlab-doctor-") as files:
        if "smaller" in changes and (small := advise.small_files(run.datamodule, Path(files))) is not None:
            run.smaller, (prepare, small_dir) = small, advise.prepare_command(run.datamodule)
        timed: Any = {"steps": steps, "warmup": warmup, "rounds": rounds}
        chosen = advise.candidates(run, changes, workers, small_dir)
        trials, rates = advise.try_changes(run, chosen, **timed)
        if best := advise.combination(trials):
            trials += advise.try_changes(run, [best], **timed)[0]
    if trace:
        trace_of: Any = {"dirpath": str(folder / "trace"), "filename": "operators", "export_to_chrome": True}
        schedule = torch.profiler.schedule(wait=warmup, warmup=1, active=min(steps, 5), repeat=1)
        run.train({}, steps=steps, warmup=warmup, profiler=PyTorchProfiler(**trace_of, schedule=schedule))
    data, rate = run.datamodule, median(rates)
    step, peak = profiled.images / rate, flops.peak_flops(run.device, str(run.trainer["precision"]))
    epoch = {
        "training": step * data.steps_per_epoch,
        "validation": profiled.validation_batch * len(data.val_dataloader()),
        "checkpoint": profiled.checkpoint,
    }
    report: Node = {
        "images_per_second": rate,
        "mfu": run.flops * rate / peak if peak else None,
        "step_ms": 1000 * step,
        "batch_size": data.batch_size,
        "workers": profiled.workers,
        "cores": environment.cores(),
        "threads": torch.get_num_threads(),
        "precision": str(run.trainer["precision"]),
        "device": str(run.device),
        "bottleneck": bottleneck(shares),
        "shares": shares,
        "parts_ms": {name: 1000 * step * share for name, share in shares.items()},
        "epoch_seconds": epoch,
        "rounds": rounds,
        "trials": [
            {
                "change": command_line(trial.overrides),
                "gain": trial.gain if trial.gains else None,
                "gains": trial.gains,
                "spread": trial.spread,
                "verdict": trial.verdict,
            }
            for trial in trials
        ],
        "advice": list(advice(shares, epoch, trials, prepare)),
    }
    atomic_write(folder / "doctor.json", json.dumps(report, indent=2))
    draw(shares, trials, folder / "figures" / "doctor.png")
    for line in report_lines(report):
        log.info("%s", line)
    return report


def bottleneck(shares: dict[str, float]) -> str:
    """The longest part, with forward, backward and optimizer as one: `step`."""
    grouped = {name: share for name, share in shares.items() if name not in STEP}
    grouped["step"] = sum(shares[name] for name in STEP)
    return max(grouped, key=lambda name: grouped[name])


def advice(shares: dict[str, float], epoch: dict[str, float], trials: Sequence[Trial], prepare: str) -> Iterator[str]:
    """Advice, the largest gain first. prepare: the command to run before an override of `data_dir`."""
    worst, computing = bottleneck(shares), sum(shares[name] for name in STEP)
    if worst == "step":
        yield f"the network is the bottleneck: {computing:.0%} of a step is computing"
    else:
        yield f"{PARTS[worst]} is the bottleneck: {shares[worst]:.0%} of a step"
    faster = sorted((t for t in trials if t.verdict == "faster"), key=lambda t: -t.gain)
    for trial in faster:
        note = "; changes the scores too: compare them" if advise.OTHER_SCORES & trial.overrides.keys() else ""
        before = f"{prepare}, then " if "data_dir" in trial.overrides else ""
        yield f"{before}{command_line(trial.overrides)}: {trial.gain:.2f} x the images per second{note}"
    if trials and not faster:
        yield "no tried change gains more than the noise"
    for name, knob in {
        "validation": "trainer.check_val_every_n_epoch",
        "checkpoint": "callbacks.last.every_n_epochs",
    }.items():
        if (share := epoch[name] / sum(epoch.values())) > WORTH:
            yield f"{name} takes {share:.0%} of an epoch; {knob}=N divides that by N"


def report_lines(report: Node) -> Iterator[str]:
    mfu = f", MFU {report['mfu']:.0%}" if report["mfu"] else ""
    yield (
        f"as configured: {report['images_per_second']:,.0f} images/s{mfu}; {report['step_ms']:.1f} ms per step of "
        f"{report['batch_size']} images, data workers: {report['workers']}, cores: {report['cores']}"
    )
    for name, label in PARTS.items():
        yield f"  {label:<46} {report['parts_ms'][name]:9.2f} ms {report['shares'][name]:5.0%}"
    yield "  an epoch: " + ", ".join(f"{name} {value:.3g} s" for name, value in report["epoch_seconds"].items())
    if report["trials"]:
        yield f"  {'tried, median of rounds':<46} {'images/s':>9}  spread"
    for trial in report["trials"]:
        gain = "" if trial["gain"] is None else f"{trial['gain']:.2f} x"
        yield f"  {trial['change']:<46} {gain:>9}  {trial['spread']:6.2f}  {trial['verdict']}"
    yield from (f"- {line}" for line in report["advice"])


def draw(shares: dict[str, float], trials: Sequence[Trial], file: Path) -> None:
    """Plot the shares of a step, and the gain of each change: bars are medians, dots are rounds."""
    figure = Figure(figsize=(9, 4 + 0.4 * len(trials)), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[4, max(1, 0.5 * len(trials))])
    above.barh(list(PARTS.values()), [shares[name] for name in PARTS])
    above.set_xlabel("share of a step")
    names = [command_line(trial.overrides) for trial in trials]
    colors = [COLORS.get(trial.verdict, "tab:gray") for trial in trials]
    below.barh(names, [trial.gain for trial in trials], color=colors)
    for name, trial in zip(names, trials, strict=True):
        below.plot(trial.gains, [name] * len(trial.gains), "k.")
    below.axvline(1, color="black", linewidth=0.8)
    below.set_xlabel("images per second relative to the configuration (gray: within noise)")
    for axis in (above, below):
        axis.invert_yaxis()
        axis.grid(alpha=0.3, axis="x")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
