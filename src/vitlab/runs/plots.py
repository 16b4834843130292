"""Figures of a run, in its folder's `figures/`."""

from array import array
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from vitlab.runs.folder import read_metrics

# What a panel shows: its label, and how the names of its curves start
PANELS: dict[str, tuple[str, ...]] = {
    "loss": ("train/loss", "val/loss"),
    "accuracy": ("val/acc",),
    "learning rate": ("lr/",),
    "gradient norm": ("train/gradient_norm",),
    "images per second": ("train/images_per_second",),
    "share": ("train/mfu", "train/data_wait"),
}
MOST_POINTS = 4000  # of a curve, which is about 400 pixels wide


def plot_curves(metrics: Path, figure_file: Path, title: str) -> None:
    """Plot loss, accuracy, learning rate, gradient norm, speed, MFU and data wait against images seen."""
    curves = read_curves(metrics)
    figure = Figure(figsize=(14, 7), layout="constrained")
    figure.suptitle(title)
    figure.supxlabel("images seen")
    for axis, (label, starts) in zip(figure.subplots(2, 3, sharex=True).flat, PANELS.items(), strict=True):
        for name, points in curves.items():
            if name.startswith(starts):
                # groups may have equal rates: a dashed line shows the one below
                line = "--" if label == "learning rate" and axis.lines else "-"
                axis.plot(*points.T, line, marker="o" if len(points) < 3 else None, label=name)
        if axis.lines:
            axis.legend()
        if label == "loss" and axis.lines and min(axis.lines[0].get_ydata()) > 0:
            axis.set_yscale("log")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure_file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(figure_file, dpi=110)


def read_curves(metrics: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The points (images, value) of each curve, float64 [n, 2]; of a long one, evenly spaced ones and the last."""
    shown = tuple(start for starts in PANELS.values() for start in starts)
    curves: dict[str, array[float]] = {}
    for row in read_metrics(metrics):
        for name in row if row.get("images") else ():
            if row[name] and name.startswith(shown):
                curves.setdefault(name, array("d")).extend((float(row["images"]), float(row[name])))
    points = {name: np.array(curve).reshape(-1, 2) for name, curve in curves.items()}
    return {name: own[np.unique(np.linspace(0, len(own) - 1, MOST_POINTS, dtype=int))] for name, own in points.items()}
