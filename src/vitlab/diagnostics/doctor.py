"""Diagnose a configuration: where its time goes and what changes gain, as text and JSON."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from vitlab.config.schema import Node
from vitlab.diagnostics import advise
from vitlab.diagnostics.advise import Trial, command_line
from vitlab.diagnostics.measure import PARTS, STEP, ProfiledRun
from vitlab.distributed import environment
from vitlab.models import flops
from vitlab.storage.atomic import atomic_write

log = logging.getLogger(__name__)


def diagnose(
    run: ProfiledRun,
    folder: Path,
    *,
    changes: Sequence[str],
    workers: Sequence[int] | None,
    steps: int,
    warmup: int,
    rounds: int,
) -> Node:
    """Measure the configuration, try changes, log the report, and write `doctor.json`."""
    run.train({}, steps=1, warmup=1)  # allocations, kernels, files
    profiled = run.train({}, steps=steps, warmup=warmup, stages=True)
    total = sum(profiled.parts.values())
    shares = {name: seconds / total for name, seconds in profiled.parts.items()}
    timed: Any = {"steps": steps, "warmup": warmup, "rounds": rounds}
    trials, rates = advise.try_changes(run, advise.candidates(run, changes, workers), **timed)
    data, rate = run.datamodule, median(rates)
    step, peak = profiled.images / rate, flops.peak_flops(run.device, str(run.trainer["precision"]))
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
        "advice": list(advice(shares, trials, in_files=data.split("train").files is not None)),
    }
    atomic_write(folder / "doctor.json", json.dumps(report, indent=2))
    for line in report_lines(report):
        log.info("%s", line)
    return report


def bottleneck(shares: dict[str, float]) -> str:
    """The longest part, with forward, backward and optimizer as one: `step`."""
    grouped = {name: share for name, share in shares.items() if name not in STEP}
    grouped["step"] = sum(shares[name] for name in STEP)
    return max(grouped, key=lambda name: grouped[name])


def advice(shares: dict[str, float], trials: Sequence[Trial], in_files: bool) -> Iterator[str]:
    """Advice, the largest gain first. in_files: whether images are decoded from files."""
    worst, computing = bottleneck(shares), sum(shares[name] for name in STEP)
    if worst == "step":
        yield f"the network is the bottleneck: {computing:.0%} of a step is computing"
    else:
        yield f"{PARTS[worst]} is the bottleneck: {shares[worst]:.0%} of a step"
    if worst == "data_wait" and in_files:
        yield "large images load faster when packed at about the training size: src/prepare.py size=..."
    faster = sorted((t for t in trials if t.verdict == "faster"), key=lambda t: -t.gain)
    for trial in faster:
        note = "; changes the scores too: compare them" if advise.OTHER_SCORES & trial.overrides.keys() else ""
        yield f"{command_line(trial.overrides)}: {trial.gain:.2f} x the images per second{note}"
    if trials and not faster:
        yield "no tried change gains more than the noise"


def report_lines(report: Node) -> Iterator[str]:
    mfu = f", MFU {report['mfu']:.0%}" if report["mfu"] else ""
    yield (
        f"as configured: {report['images_per_second']:,.0f} images/s{mfu}; {report['step_ms']:.1f} ms per step of "
        f"{report['batch_size']} images, data workers: {report['workers']}, cores: {report['cores']}"
    )
    for name, label in PARTS.items():
        yield f"  {label:<46} {report['parts_ms'][name]:9.2f} ms {report['shares'][name]:5.0%}"
    if report["trials"]:
        yield f"  {'tried, median of rounds':<46} {'images/s':>9}  spread"
    for trial in report["trials"]:
        gain = "" if trial["gain"] is None else f"{trial['gain']:.2f} x"
        yield f"  {trial['change']:<46} {gain:>9}  {trial['spread']:6.2f}  {trial['verdict']}"
    yield from (f"- {line}" for line in report["advice"])
