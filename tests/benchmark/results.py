"""Write the results of a benchmark: `benchmark.csv`, tables and goals in `benchmark.md`, and a figure per part."""

import csv
import io
from collections.abc import Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.case import EXPONENT, IDEAL, OURS, Case
from benchmark.goals import outcomes
from vitlab.storage.atomic import atomic_write

ROUNDS = "seconds of each round"


def write(cases: Sequence[Case], folder: Path, *, title: str) -> None:
    """Write all tables, and the figure of the last case's part."""
    rows, part, text = table(cases), cases[-1].part, io.StringIO()
    writer = csv.DictWriter(text, [*dict.fromkeys(chain(*rows)), "machine"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"machine": title} for row in rows)
    atomic_write(folder / "benchmark.csv", text.getvalue())
    atomic_write(folder / "benchmark.md", markdown(cases, rows, title=title))
    plot([case for case in cases if case.part == part], folder / f"{part}.png", title=f"{part}: {title}")


def table(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """A row for each contender of each case. The column "vitlab is" has vitlab's rate relative to the contender's.

    Seconds are per call; a reference's (the matrix product) are scaled to the first contender's items.
    """
    rows = []
    for case in cases:
        for m in case.measured:
            items = m.items if m.peer else case.measured[0].items
            row: dict[str, Any] = {"part": case.part, "case": case.name, "contender": m.name}
            row |= {f"{case.unit} a second": m.rate} if case.unit else {}
            row |= {"seconds": items / m.rate, "spread %": 100 * m.spread, "rounds": len(m.seconds)}
            row |= {f"{OURS} is": each.ratio(m) for each in case.measured if each.name == OURS}
            rows.append(row | dict(m.figures) | {ROUNDS: " ".join(map(repr, m.seconds))})
    return rows


def markdown(cases: Sequence[Case], rows: Sequence[dict[str, Any]], *, title: str) -> str:
    """A table for each part, and the outcomes of the goals."""
    lines = [f"# {title}", ""]
    for part, group in groupby(rows, key=lambda row: row["part"]):
        chosen = list(group)
        names = [name for name in dict.fromkeys(chain(*chosen)) if name not in ("part", ROUNDS)]
        lines += [f"## {part}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        for row in chosen:
            lines.append(f"| {' | '.join(format_cell(row.get(name, '')) for name in names)} |")
        lines.append("")
    reached = [f"- {case.part}, {case.name}: {text}" for case in cases for _, text in outcomes(case)]
    return "\n".join([*lines, *(["## Goals", "", *reached, ""] if reached else [])])


def format_cell(value: object) -> str:
    return str(value) if not isinstance(value, float) else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def plot(cases: Sequence[Case], file: Path, *, title: str) -> None:
    """Plot a part: a panel with a row for each case, or for each axis a panel with a line for each contender."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(case.axis for case in cases))
    columns = min(len(axes), 4)
    rows, height = -(-len(axes) // columns), 5 if axes[0] else 2.5 + 0.25 * len(cases)
    figure = Figure(figsize=(max(10, 5 * columns), height * rows), layout="constrained")
    figure.suptitle(title, fontsize=9)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel in panels[len(axes) :]:
        panel.remove()
    for panel, axis in zip(panels, axes, strict=False):
        draw = draw_lines if axis else draw_rows
        draw(panel, [case for case in cases if case.axis == axis])
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def draw_rows(panel: Any, cases: Sequence[Case]) -> None:
    """Plot speeds relative to the fastest contender of each case."""
    best = [max(m.rate for m in case.measured if m.peer) for case in cases]
    for name in dict.fromkeys(m.name for case in cases for m in case.measured if m.peer):
        points = [(row, m) for row, case in enumerate(cases) for m in case.measured if m.name == name]
        shares, rows = [m.rate / best[row] for row, m in points], [row for row, _ in points]
        spread = [m.spread * share / 2 for (_, m), share in zip(points, shares, strict=True)]
        panel.errorbar(shares, rows, xerr=spread, fmt="o", alpha=0.8, label=name)
    speeds = [f"{format_cell(case.speed(case.measured[0]))} {f'{case.unit}/s' if case.unit else 's'}" for case in cases]
    labels = [f"{case.name}\n{case.measured[0].name}: {speed}" for case, speed in zip(cases, speeds, strict=True)]
    panel.set_yticks(range(len(cases)), labels, fontsize=7)
    panel.invert_yaxis()
    panel.set_xlim(left=0)
    panel.set_xlabel("speed relative to the fastest (whiskers: quartiles)")


def draw_lines(panel: Any, cases: Sequence[Case]) -> None:
    """Plot speed against size on logarithmic axes; dashed: the ideal exponent."""
    sizes = np.array([case.size for case in cases])
    for index, row in enumerate(zip(*(case.measured for case in cases), strict=True)):
        values = np.array([case.speed(m) for case, m in zip(cases, row, strict=True)])
        label, color, figures = row[0].name, f"C{index}", row[0].figures
        if IDEAL in figures:
            label += f": exponent {figures[EXPONENT]:.2f}, ideal {figures[IDEAL]:.2f}"
            panel.plot(sizes, values[0] * (sizes / sizes[0]) ** figures[IDEAL], f"{color}--", alpha=0.6)
        panel.errorbar(sizes, values, yerr=[m.spread / 2 for m in row] * values, fmt="o-", color=color, label=label)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(sizes, [f"{size:,g}" for size in sizes])
    panel.xaxis.minorticks_off()
    panel.set_xlabel(cases[0].axis)
    panel.set_ylabel(f"{cases[0].unit} a second" if cases[0].unit else "seconds")
