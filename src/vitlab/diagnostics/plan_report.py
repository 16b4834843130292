"""A plan as text, as a table of several, and as a picture."""

import json
from collections.abc import Iterator
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from vitlab.config.schema import Node

FILE, GB = "plan.json", 1e9
Curve = list[list[float]]  # pairs of step and rate


def plan_lines(plan: Node) -> Iterator[str]:
    """The numbers of the plan, and its advice."""
    for key, value in plan.items():
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value
        if isinstance(value, dict):
            text = ", ".join(f"{name} {size / GB:.3f} GB" for name, size in value.items())
        if value is not None and not isinstance(value, list):
            yield f"{key.replace('_', ' '):<22} {text}"
    yield from (f"- {line}" for line in plan["advice"])


def plan_table(folder: Path) -> list[str]:
    """The plans in the folders of a sweep, as a table in Markdown, named by what differs in their commands."""
    files = sorted(folder.glob(f"*/{FILE}"), key=lambda file: (len(file.parent.name), file.parent.name))
    plans = [json.loads(file.read_text()) for file in files]
    common = set.intersection(*(set(plan["overrides"]) for plan in plans))
    head = ["plan", "parameters", "G FLOPs an image", "steps", "images seen", "GB a device", "GB recomputed", "hours"]
    rows = [head, ["---"] * len(head)]
    for plan in plans:
        own = [override for override in plan["overrides"] if override not in common]
        hours = "" if plan["hours"] is None else f"{plan['hours']:.3g}"
        sizes = (plan["memory"]["total"], plan["memory_by_activations"]["recomputed"])
        row = f"{plan['parameters']:,}\t{plan['flops_per_image'] / 1e9:.4g}\t{plan['steps']:,}\t{plan['images_seen']:,}"
        rows.append([" ".join(own) or plan["name"], *row.split("\t"), *(f"{size / GB:.2f}" for size in sizes), hours])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows]


def draw_plan(plan: Node, curves: list[Curve], file: Path) -> None:
    """Draw the rate of each group against steps and epochs."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axis, each, hours = figure.subplots(), plan["steps_per_epoch"], ""
    if plan["hours"] is not None:
        hours = f", {plan['hours']:.3g} hours ({plan['hours_from']})"
    figure.suptitle(f"{plan['name']}: {plan['steps']:,} steps of {plan['batch_size']} images{hours}")
    groups: dict[tuple[float, ...], list[str]] = {}  # with the same rates
    for group, curve in zip(plan["groups"], curves, strict=True):
        groups.setdefault(tuple(rate for _, rate in curve), []).append(group["name"])
    for index, rates in enumerate(sorted(groups, key=max)):
        names, few = groups[rates], len(groups) <= 4
        label = f"{', '.join(names[:2])}{' ...' * (len(names) > 2)}: at most {max(rates):.3g}"
        color = f"C{index}" if few else colormaps["viridis"](index / len(groups))
        shown = label if few or index in (0, len(groups) - 1) else None
        axis.plot([step for step, _ in curves[0]], rates, color=color, clip_on=False, label=shown)
    axis.set(xlabel="optimizer step", ylabel="learning rate", ylim=(0, 1.45 * max(map(max, groups)) or None))
    axis.margins(x=0.01)
    axis.grid(alpha=0.3)
    axis.legend(loc="upper right", fontsize=9)  # ylim has room for it
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.secondary_xaxis("top", functions=(lambda x: x / each, lambda x: x * each)).set_xlabel("epoch")
    figure.savefig(file, dpi=110)
