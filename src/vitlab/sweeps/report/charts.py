"""Charts of a report as inline SVG. The page's style sheet sets the colors, for light and dark mode alike.

The marks of configuration k have the classes `m` and `ck` (its color; `cx` past the last color) and `data-c="k"`, by
which the page's script finds them. Every mark has a `<title>`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape
from matplotlib.ticker import LogLocator, MaxNLocator

COLORS = 8  # that can be distinguished; further configurations are gray
WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 46, WIDTH - 10, 30, HEIGHT - 36  # the edges of the plot


@dataclass(frozen=True)
class Line:
    """A curve of configuration `group`, and the band from `low` to `high`, if any."""

    label: str
    group: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Point:
    """A point of configuration `group`, and the error bar from `low` to `high`, if any."""

    label: str
    group: int
    x: float
    y: float
    low: float | None = None
    high: float | None = None


class Axis:
    """A scale from values to pixels with a margin at both ends; a logarithmic one clips what is below it."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool = False) -> None:
        low, high = min(values), max(values)
        self.start, self.end, self.log = start, end, log
        if log:
            margin = (high / low) ** 0.05 if high > low else 1.5
            self.low, self.high = low / margin, high * margin
            ticks = self.within(LogLocator(subs=(1.0, 2.0, 5.0)).tick_values(self.low, self.high))
            self.ticks = ticks if len(ticks) <= 5 else [t for t in ticks if math.log10(t).is_integer()]
        else:
            margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
            self.low, self.high = low - margin, high + margin
            locator = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10])
            self.ticks = self.within(locator.tick_values(self.low, self.high))

    def within(self, ticks: Iterable[float]) -> list[float]:
        return [float(tick) for tick in ticks if self.low <= tick <= self.high]

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)


def spans_decades(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) > 30


def format_short(value: float) -> str:
    """Format a number in few characters: 0.25, 1.5k, 3M, 1e-04."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.0e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"


def svg(inside: str, name: str, height: float = HEIGHT) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(name)}" class="chart">{inside}</svg>'
    )


def text(x: float, y: float, words: str, *, kind: str = "tick", anchor: str = "middle", title: str = "") -> str:
    title = f"<title>{escape(title)}</title>" if title else ""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}{title}</text>'


def rule(kind: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:g}" x2="{x2:g}" y1="{y1:g}" y2="{y2:g}"/>'


def mark(item: Line | Point, inside: str) -> str:
    color = item.group if item.group < COLORS else "x"
    return f'<g class="m c{color}" data-c="{item.group}"><title>{escape(item.label)}</title>{inside}</g>'


def pixels(x: Axis, y: Axis, places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x(a)},{y(b)}" for a, b in places)


def draw_axes(x: Axis | None, y: Axis, x_name: str, y_name: str, *, percent: bool) -> str:
    """Return grid lines, numbers (none at the bottom without `x`) and the names of the axes."""
    parts = [text(0, 14, y_name, kind="name", anchor="start"), rule("axis", LEFT, RIGHT, BOTTOM, BOTTOM)]
    for tick in y.ticks:
        number = f"{100 * tick:.4g} %" if percent else format_short(tick)
        parts += [rule("grid", LEFT, RIGHT, y(tick), y(tick)), text(LEFT - 6, y(tick) + 4, number, anchor="end")]
    if x is not None:
        parts += [text(x(tick), BOTTOM + 15, format_short(tick)) for tick in x.ticks]
    return "".join([*parts, text(RIGHT, HEIGHT - 4, x_name, anchor="end")])


def line_chart(series: Sequence[Line], *, x_name: str, y_name: str, percent: bool = False) -> Markup | None:
    """Draw curves with bands, the first one on top. Returns None if there is no point to draw."""
    series = [line for line in reversed(series) if line.x]
    if not series:
        return None
    values = [v for line in series for v in line.y]
    log = spans_decades(values)
    if not log:
        values += [v for line in series for v in (*line.low, *line.high)]
    x, y = Axis([v for line in series for v in line.x], LEFT, RIGHT), Axis(values, BOTTOM, TOP, log=log)
    bands, lines = "", ""
    for line in series:
        if line.low:
            edge = [*zip(line.x, line.high, strict=True), *reversed([*zip(line.x, line.low, strict=True)])]
            bands += mark(line, f'<polygon class="band" points="{pixels(x, y, edge)}"/>')
        places = pixels(x, y, zip(line.x, line.y, strict=True))
        curve = f'<polyline class="line" points="{places}"/>'
        lines += mark(line, curve if len(line.x) > 1 else f'<circle cx="{x(line.x[0])}" cy="{y(line.y[0])}" r="3.5"/>')
    axes = draw_axes(x, y, x_name, y_name, percent=percent)
    return svg(axes + bands + lines, f"{y_name} against {x_name}")


def scatter_chart(
    points: Sequence[Point], *, x_name: str, y_name: str, percent: bool = False, front: Sequence[int] = ()
) -> Markup | None:
    """Draw points with error bars, and a line through the Pareto front, given by its points' indices."""
    if not points:
        return None
    xs = [p.x for p in points]
    x = Axis(xs, LEFT, RIGHT, log=spans_decades(xs))
    y = Axis([v for p in points for v in (p.y, p.low, p.high) if v is not None], BOTTOM, TOP)
    parts = [draw_axes(x, y, x_name, y_name, percent=percent)]
    if len(front) > 1:
        path = pixels(x, y, sorted((points[i].x, points[i].y) for i in front))
        parts.append(f'<polyline class="front" points="{path}"><title>nothing is better in both</title></polyline>')
    for p in reversed(points):
        bar = rule("spread", x(p.x), x(p.x), y(p.low), y(p.high)) if p.low is not None and p.high is not None else ""
        parts.append(mark(p, f'{bar}<circle cx="{x(p.x)}" cy="{y(p.y)}" r="5"/>'))
    return svg("".join(parts), f"{y_name} against {x_name}")


def strip_chart(
    columns: Mapping[str, Sequence[Point]], *, x_name: str, y_name: str, percent: bool = False
) -> Markup | None:
    """Draw a column of points for each value of a setting (the points' `x` is ignored), with a dash at its mean."""
    values = [point.y for points in columns.values() for point in points]
    if not values:
        return None
    y, room = Axis(values, BOTTOM, TOP), (RIGHT - LEFT) / len(columns)
    fitting = max(3, int(room / 6.5))  # characters
    parts = [draw_axes(None, y, x_name, y_name, percent=percent)]
    for i, (name, points) in enumerate(columns.items()):
        middle, half = LEFT + (i + 0.5) * room, min(28.0, room / 3)
        short = name if len(name) <= fitting else f"{name[: fitting - 1]}…"
        parts.append(text(middle, BOTTOM + 15, short, title=name))
        if points:
            mean = y(sum(p.y for p in points) / len(points))
            parts.append(rule("mean", middle - half, middle + half, mean, mean))
        for k, p in enumerate(points):
            x = middle + (k - (len(points) - 1) / 2) * min(9.0, room / (len(points) + 1))
            parts.append(mark(p, f'<circle cx="{x:.1f}" cy="{y(p.y)}" r="4"/>'))
    return svg("".join(parts), f"{y_name} by {x_name}")
