"""Figures of a run, in its folder's `figures/`."""

from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from vitlab.runs.folder import read_metrics

SHARES = ["train/mfu", "train/data_wait"]
SHOWN = ["train/loss", "val/loss", "val/acc", "val/acc5", "train/images_per_second", *SHARES]
MOST_POINTS = 4000  # of a curve, which is about 500 pixels wide


def plot_curves(metrics: Path, figure_file: Path, title: str) -> None:
    """Plot loss, accuracy, learning rate and speed against images seen, from `metrics.csv`; MFU and data wait on a
    second axis.
    """
    curves = read_curves(metrics)
    figure = Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(title)
    (loss, accuracy), (rate, speed) = figure.subplots(2, 2, sharex=True)
    shares = speed.twinx()
    shares.set_prop_cycle(color=["tab:green", "tab:red"])
    for axis, label, names, style in (
        (loss, "loss", ["train/loss", "val/loss"], "-"),
        (accuracy, "accuracy", ["val/acc", "val/acc5"], "-"),
        (rate, "learning rate", [name for name in curves if name.startswith("lr/")], "-"),
        (speed, "images per second", ["train/images_per_second"], "-"),
        (shares, "share", SHARES, ":"),
    ):
        for name in names:
            # groups may have equal rates: a dashed line shows the one below
            line = "--" if axis is rate and axis.lines else style
            if points := curves.get(name):
                axis.plot(*zip(*points, strict=True), line, marker="o" if len(points) < 3 else None, label=name)
        axis.set_ylabel(label)
        if axis is not shares:
            axis.grid(alpha=0.3)
        if axis.lines and axis not in (speed, shares):
            axis.legend()
    # above the panel, where they hide no curve
    handles = [*speed.lines, *shares.lines]
    speed.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    shares.set_ylim(0, max(1.0, shares.get_ylim()[1]))
    shares.set_visible(bool(shares.lines))
    if loss.lines and min(loss.lines[0].get_ydata()) > 0:
        loss.set_yscale("log")
    for axis in (rate, speed):
        axis.set_xlabel("images seen")
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure_file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(figure_file, dpi=110)


def read_curves(metrics: Path) -> dict[str, list[tuple[float, float]]]:
    """The points (images, value) of each curve; of a long one every second, fourth ... and the last."""
    curves, seen, last = dict[str, list[tuple[float, float]]](), Counter[str](), dict[str, tuple[float, float]]()
    for row in read_metrics(metrics):
        for name in row if row.get("images") else ():
            if not row[name] or not (name in SHOWN or name.startswith("lr/")):
                continue
            last[name] = float(row["images"]), float(row[name])
            curve, step = curves.setdefault(name, []), 2 ** (seen[name] // MOST_POINTS).bit_length()
            if seen[name] % step == 0 and len(curve) == MOST_POINTS:
                curves[name] = curve = curve[::2]
            if seen[name] % step == 0:
                curve.append(last[name])
            seen[name] += 1
    return {name: [*curve, last[name]] if curve[-1] != last[name] else curve for name, curve in curves.items()}
