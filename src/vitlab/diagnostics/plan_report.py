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
Memory = dict[str, dict[str, int]]  # bytes by part, with activations stored and recomputed


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


def draw_plan(plan: Node, memory: Memory, curves: list[Curve], file: Path) -> None:
    """Draw the rate and decay of each group against steps and epochs, and the parts of the memory."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    hours = "" if plan["hours"] is None else f", {plan['hours']:.3g} hours ({plan['hours_from']})"
    figure.suptitle(f"{plan['name']}: {plan['steps']:,} steps of {plan['batch_size']} images{hours}")
    grid = figure.add_gridspec(2, 3)
    rate, decay, bars = (figure.add_subplot(place) for place in (grid[0, :2], grid[1, :2], grid[:, 2]))
    names, each = [group["name"] for group in plan["groups"]], plan["steps_per_epoch"]
    steps = [step for step, _ in curves[0]]
    rates = [tuple(value for _, value in curve) for curve in curves]
    decays = [(group["weight_decay"],) * len(steps) for group in plan["groups"]]
    for axis, label, lines in ((rate, "learning rate", rates), (decay, "weight decay", decays)):
        distinct = sorted(set(lines), key=max)
        for index, line in enumerate(distinct):
            of = [name for name, own in zip(names, lines, strict=True) if own == line]
            most = f"{'at most ' * (axis is rate)}{max(line):.3g}"
            text = f"{', '.join(of[:2])}{' ...' * (len(of) > 2)}: {most}"
            shown = len(distinct) <= 4 or index in (0, len(distinct) - 1)
            color = f"C{index}" if len(distinct) <= 4 else colormaps["viridis"](index / len(distinct))
            axis.plot(steps, line, color=color, clip_on=False, label=text if shown else None)
        axis.set(xlabel="optimizer step", ylabel=label)
        axis.margins(x=0.01)
        axis.set_ylim(0, 1.45 * max(map(max, lines)) or None)  # room for the legend
        axis.grid(alpha=0.3)
        axis.legend(loc="upper right", fontsize=9)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.secondary_xaxis("top", functions=(lambda x: x / each, lambda x: x * each)).set_xlabel("epoch")
    parts, bottoms = list(memory["stored"]), [0.0] * len(memory)
    for part in parts:
        heights = [kind[part] / GB for kind in memory.values()]
        bars.bar([f"activations\n{kind}" for kind in memory], heights, bottom=bottoms, label=part, width=0.6)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for index, total in enumerate(bottoms):
        bars.text(index, total, f"{total:.3g}", ha="center", va="bottom")
    if plan["memory_gb"]:
        bars.axhline(plan["memory_gb"], color="black", linestyle="--", label=f"device: {plan['memory_gb']:.4g} GB")
    bars.set(ylabel="GB on each device", ylim=(0, 1.5 * max([*bottoms, plan["memory_gb"] or 0])))
    bars.set_title(f"{plan['images_per_device']} images a device at a time", fontsize=10)
    bars.legend(loc="upper right")
    bars.grid(axis="y", alpha=0.3)
    bars.set_axisbelow(True)
    figure.savefig(file, dpi=110)
