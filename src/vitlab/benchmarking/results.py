"""What was measured, as files: every number in `benchmark.csv`, the table `benchmark.md`, the picture `benchmark.png`.

The files are written again after each case, so a benchmark that is stopped has lost nothing.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from vitlab.benchmarking.timing import OURS, Case, Measured
from vitlab.runs import replace

COLUMNS = ("part", "case", "contender", "unit", "items", "calls", "round", "seconds", "ratio", "machine")


def write(cases: Sequence[Case], folder: Path, *, title: str) -> None:
    replace(folder / "benchmark.csv", table_of_rounds(cases, title=title))
    replace(folder / "benchmark.md", markdown(cases, title=title))
    picture(cases, folder / "benchmark.png", title=title)


def table_of_rounds(cases: Sequence[Case], *, title: str) -> str:
    """CSV: a line for each measurement, and in each of its contender's lines that one's ratio and figures.

    The ratio is how many times as fast ours is, of the medians; `machine` is what the table has as its title.
    """
    names = list(dict.fromkeys(name for case in cases for measured in case.measured for name in measured.figures))
    written = io.StringIO()
    lines = csv.writer(written, lineterminator="\n")
    lines.writerow([*COLUMNS, *names])
    for case in cases:
        for measured in case.measured:
            for number, seconds in enumerate(measured.seconds):
                facts = [
                    case.part,
                    case.name,
                    measured.name,
                    case.unit,
                    measured.items,
                    measured.calls,
                    number,
                    seconds,
                    ratio(case, measured),
                    title,
                ]
                lines.writerow([*facts, *(measured.figures.get(name, "") for name in names)])
    return written.getvalue()


def markdown(cases: Sequence[Case], *, title: str) -> str:
    """A table for each part, then each goal and what was reached."""
    lines = [f"# {title}", ""]
    for part in dict.fromkeys(case.part for case in cases):
        chosen = [case for case in cases if case.part == part]
        figures = list(dict.fromkeys(name for case in chosen for m in case.measured for name in m.figures))
        lines += [f"## {part}", ""]
        heads = ["case", "contender", *columns(chosen), "spread", "rounds", f"{OURS} is", *figures]
        lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for case in chosen:
            for measured in case.measured:
                row = cells(case, measured, figures, columns=columns(chosen))
                lines.append(f"| {' | '.join(row)} |")
        lines.append("")
    reached = [outcome for case in cases for outcome in told(case)]
    if reached:
        lines += ["## Goals", "", "| case | goal | measured | |", "|---|---|---|---|", *reached, ""]
    return "\n".join(lines)


def ratio(case: Case, measured: Measured) -> float | str:
    """How many times as fast as this one ours is; nothing where there is no such thing."""
    ours = [m for m in case.measured if m.name == OURS]
    return ours[0].ratio(measured) if ours else ""


def columns(cases: Sequence[Case]) -> list[str]:
    """How a part tells speed: a start has seconds, and nobody wants to know how many there are in one."""
    return ["seconds"] if all(case.lasting for case in cases) else ["a second", "seconds"]


def cells(case: Case, measured: Measured, figures: Sequence[str], *, columns: Sequence[str]) -> Iterator[str]:
    """Seconds are those of a call; of what is no peer, those of as many items as the first one's call has."""
    yield case.name
    yield measured.name
    if "a second" in columns:
        yield f"{measured.rate:,.4g} {case.unit}"
    yield f"{measured.median if measured.peer else measured.seconds_of_item * case.measured[0].items:.4g}"
    yield f"{measured.spread:.0%}"
    yield f"{len(measured.seconds)}"
    times = ratio(case, measured)
    yield f"{times:.2f} x" if times != "" and measured.name != OURS else ""
    for name in figures:
        yield f"{measured.figures[name]:,.4g}" if name in measured.figures else ""


def told(case: Case) -> Iterator[str]:
    for goal, rival, ratio in case.outcomes():
        verdict = "reached" if ratio >= goal.least else "**missed**"
        said = goal.outcome(case[goal.ours], rival, ratio, lasting=case.lasting)
        yield f"| {case.name} | {goal.told(rival, lasting=case.lasting)} | {said} | {verdict} |"


def picture(cases: Sequence[Case], figure_file: Path, *, title: str) -> None:
    """For each case a bar for each contender: how fast it is, as a share of the fastest."""
    from matplotlib.figure import Figure

    rows = [(case, measured) for case in cases for measured in case.measured if measured.peer]
    names = list(dict.fromkeys(measured.name for _, measured in rows))
    figure = Figure(figsize=(10, 1.5 + 0.22 * (len(rows) + len(cases))), layout="constrained")
    axis = figure.subplots()
    figure.suptitle(title)
    place, ticks = 0.0, []
    for case in cases:
        rivals = [measured for measured in case.measured if measured.peer]
        best = max((measured.rate for measured in rivals), default=1.0)
        ticks.append((place + (len(rivals) - 1) / 2, f"{case.part}: {case.name}"))
        for measured in rivals:
            colour = f"C{names.index(measured.name)}"
            axis.barh(place, measured.rate / best, color=colour, xerr=measured.spread * measured.rate / best / 2)
            if case.lasting:
                axis.text(0.005, place, f"{measured.median:.3g} s", va="center", fontsize=6)
            place += 1
        place += 1
    axis.set_yticks([y for y, _ in ticks], [label for _, label in ticks], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("speed, as a share of the fastest (whiskers: quartiles)")
    for index, name in enumerate(names):
        axis.barh(0, 0, color=f"C{index}", label=name)
    if names:
        figure.legend(loc="outside lower center", ncols=len(names))
    axis.grid(alpha=0.3, axis="x")
    figure.savefig(figure_file, dpi=110)
