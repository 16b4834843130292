"""Figures of a run, in its folder's `figures/`."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from vitlab.runs.folder import read_metrics

SHARES = ("train/mfu", "train/data_wait")


def plot_curves(metrics: Path, figure_file: Path, title: str) -> None:
    """Plot loss, accuracy, learning rate and speed against images seen, from `metrics.csv`; MFU and data wait on a
    second axis.
    """
    rows = [row for row in read_metrics(metrics) if row]

    def series(name: str) -> tuple[list[float], list[float]]:
        points = [(float(r["images"]), float(r[name])) for r in rows if r.get(name) and r.get("images")]
        return [x for x, _ in points], [y for _, y in points]

    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    figure.suptitle(title)
    names = rows[0].keys() if rows else []
    shares = axes[1, 1].twinx() if any(series(name)[0] for name in SHARES) else None
    for axis, label, shown in (
        (axes[0, 0], "loss", ["train/loss", "val/loss"]),
        (axes[0, 1], "accuracy", ["val/acc", "val/acc5"]),
        (axes[1, 0], "learning rate", [n for n in names if n.startswith("lr/")]),
        (axes[1, 1], "images per second", ["train/images_per_second"]),
    ):
        for i, name in enumerate(shown):
            x, y = series(name)
            # groups may have equal rates: a dashed line shows the one below
            style = "--" if label == "learning rate" and i else "-"
            if x:
                axis.plot(x, y, style, marker="o" if len(x) < 3 else None, label=name)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0] and (axis is not axes[1, 1] or shares is None):
            axis.legend()
    if shares is not None:
        for name, color in zip(SHARES, ("tab:green", "tab:red"), strict=True):
            x, y = series(name)
            shares.plot(x, y, ":", color=color, marker="o" if len(x) == 1 else None, label=name)
        shares.set_ylim(0, max(1.0, *(value for name in SHARES for value in series(name)[1])))
        shares.set_ylabel("share")
        handles = axes[1, 1].get_legend_handles_labels()[0] + shares.get_legend_handles_labels()[0]
        # above the panel, where it hides no curve
        axes[1, 1].legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(handles), frameon=False)
    if series("train/loss")[1] and min(series("train/loss")[1]) > 0:
        axes[0, 0].set_yscale("log")
    for axis in axes[1]:
        axis.set_xlabel("images seen")
        axis.xaxis.set_major_locator(MaxNLocator(6))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure_file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(figure_file, dpi=110)
