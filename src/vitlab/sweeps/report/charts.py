"""Charts of a report, as SVG to be put into a page: its style sheet gives the colours, so light and dark both work.

What is drawn of configuration k is of the classes `m` and `ck` (its colour; `cx` beyond the last) and has `data-c="k"`,
by which the page finds it. Every mark says what it is in a `<title>`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape
from matplotlib.ticker import LogLocator, MaxNLocator

COLOURS = 8  # that can be told apart; further configurations are grey
WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 30, 36  # margins of the plot: numbers, and names of the axes


@dataclass(frozen=True)
class Line:
    """A curve and, where `low` and `high` are given, the band about it."""

    label: str
    group: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Point:
    """A place with a name; `low` and `high` are the ends of a bar through it."""

    label: str
    group: int
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass
class Axis:
    """From values to pixels, and the places worth a number."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    ticks: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.log:
            ticks = [float(t) for t in LogLocator(subs=(1.0, 2.0, 5.0)).tick_values(self.low, self.high)]
            few = [t for t in ticks if math.log10(t).is_integer()]
            inside = [t for t in ticks if self.low <= t <= self.high]
            self.ticks = inside if len(inside) <= 5 else [t for t in few if self.low <= t <= self.high]
        else:
            locator = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10])
            self.ticks = [float(t) for t in locator.tick_values(self.low, self.high) if self.low <= t <= self.high]

    def __call__(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        share = ((math.log10(value) if self.log else value) - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)


def axis_for(values: Sequence[float], start: float, end: float, *, log: bool = False) -> Axis:
    """An axis that holds all values, with some room at both ends."""
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** 0.05 if high > low else 1.5
        return Axis(low / room, high * room, start, end, log=True)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(low - room, high + room, start, end)


def spans_decades(values: Sequence[float]) -> bool:
    """Whether values are told apart better by their logarithms."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > 30


def format_short(value: float) -> str:
    """A number of few characters: 0.25, 1.5k, 3M, 1e-04."""
    size = abs(value)
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.3g}{name}"
    if size and size < 1e-3:
        return f"{value:.0e}"
    return f"{value:.3g}"


def svg(inside: str, name: str, *, height: float = HEIGHT) -> Markup:
    """An SVG that is as wide as its place."""
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(name)}" class="chart">{inside}</svg>'
    )


def draw_axes(x: Axis, y: Axis, x_name: str, y_name: str, *, x_numbers: bool = True, percent: bool = False) -> str:
    """Grid lines and numbers; the names of the axes where they are read: above, and below on the right."""
    parts = [f'<text class="name" x="0" y="14">{escape(y_name)}</text>']
    for tick in y.ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>')
        told = f"{100 * tick:.4g} %" if percent else format_short(tick)
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 4}" text-anchor="end">{told}</text>')
    bottom = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    if x_numbers:
        for tick in x.ticks:
            parts.append(
                f'<text class="tick" x="{x(tick)}" y="{bottom + 15}" text-anchor="middle">{format_short(tick)}</text>'
            )
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_name)}</text>')
    return "".join(parts)


def configuration_attributes(group: int) -> str:
    """The attributes of what belongs to a configuration."""
    return f'class="m c{group if group < COLOURS else "x"}" data-c="{group}"'


def line_chart(series: Sequence[Line], *, x_name: str, y_name: str, percent: bool = False) -> Markup | None:
    """Curves with bands, the first one on top; None where there is no point to draw."""
    series = [line for line in series if len(line.x) > 0]
    if not series:
        return None
    values = [v for line in series for v in (*line.y, *line.low, *line.high)]
    log = spans_decades([v for line in series for v in line.y])
    if log:
        values = [v for line in series for v in line.y]
    x = axis_for([v for line in series for v in line.x], LEFT, WIDTH - RIGHT)
    y = axis_for(values, HEIGHT - BOTTOM, TOP, log=log)
    parts = [draw_axes(x, y, x_name, y_name, percent=percent)]
    for line in reversed(series):
        title = f"<title>{escape(line.label)}</title>"
        if len(line.low) > 0:
            upper = [f"{x(a)},{y(max(b, y.low) if log else b)}" for a, b in zip(line.x, line.high, strict=True)]
            lower = [f"{x(a)},{y(max(b, y.low) if log else b)}" for a, b in zip(line.x, line.low, strict=True)]
            band = " ".join([*upper, *reversed(lower)])
            parts.append(
                f'<g {configuration_attributes(line.group)}><polygon class="band" points="{band}">{title}</polygon></g>'
            )
    for line in reversed(series):
        title = f"<title>{escape(line.label)}</title>"
        if len(line.x) == 1:
            parts.append(
                f'<g {configuration_attributes(line.group)}><circle cx="{x(line.x[0])}" cy="{y(line.y[0])}" r="3.5">{title}</circle></g>'
            )
        else:
            path = " ".join(f"{x(a)},{y(b)}" for a, b in zip(line.x, line.y, strict=True))
            parts.append(
                f'<g {configuration_attributes(line.group)}><polyline class="line" points="{path}">{title}</polyline></g>'
            )
    return svg("".join(parts), f"{y_name} against {x_name}")


def scatter_chart(
    points: Sequence[Point], *, x_name: str, y_name: str, percent: bool = False, front: Sequence[int] = ()
) -> Markup | None:
    """Points with bars through them; a line through `front`, the indices of those that nothing is better than."""
    if not points:
        return None
    ends = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    xs = [p.x for p in points]
    x = axis_for(xs, LEFT, WIDTH - RIGHT, log=spans_decades(xs))
    y = axis_for(ends, HEIGHT - BOTTOM, TOP)
    parts = [draw_axes(x, y, x_name, y_name, percent=percent)]
    if len(front) > 1:
        path = " ".join(f"{x(points[i].x)},{y(points[i].y)}" for i in sorted(front, key=lambda i: points[i].x))
        parts.append(f'<polyline class="front" points="{path}"><title>nothing is better in both</title></polyline>')
    for point in reversed(points):
        inside = f"<title>{escape(point.label)}</title>"
        if point.low is not None and point.high is not None:
            inside += f'<line x1="{x(point.x)}" x2="{x(point.x)}" y1="{y(point.low)}" y2="{y(point.high)}"/>'
        inside += f'<circle cx="{x(point.x)}" cy="{y(point.y)}" r="5"/>'
        parts.append(f"<g {configuration_attributes(point.group)}>{inside}</g>")
    return svg("".join(parts), f"{y_name} against {x_name}")


def strip_chart(
    columns: Sequence[tuple[str, Sequence[Point]]], *, x_name: str, y_name: str, percent: bool = False
) -> Markup | None:
    """A column of points for each value of a setting, and a dash at the mean of each; `x` of a point isn't used."""
    values = [point.y for _, points in columns for point in points]
    if not values:
        return None
    x = Axis(0, len(columns), LEFT, WIDTH - RIGHT)
    y = axis_for(values, HEIGHT - BOTTOM, TOP)
    parts = [draw_axes(x, y, x_name, y_name, x_numbers=False, percent=percent)]
    room = (WIDTH - RIGHT - LEFT) / len(columns)
    fitting = max(3, int(room / 6.5))  # characters
    for i, (name, points) in enumerate(columns):
        middle = x(i + 0.5)
        shown = name if len(name) <= fitting else f"{name[: fitting - 1]}…"
        parts.append(
            f'<text class="tick" x="{middle}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">'
            f"{escape(shown)}<title>{escape(name)}</title></text>"
        )
        if points:
            mean = y(sum(p.y for p in points) / len(points))
            half = min(28.0, room / 3)
            parts.append(f'<line class="mean" x1="{middle - half}" x2="{middle + half}" y1="{mean}" y2="{mean}"/>')
        for k, point in enumerate(points):
            at = middle + (k - (len(points) - 1) / 2) * min(9.0, room / (len(points) + 1))
            title = f"<title>{escape(point.label)}</title>"
            parts.append(
                f'<g {configuration_attributes(point.group)}><circle cx="{at:.1f}" cy="{y(point.y)}" r="4">{title}</circle></g>'
            )
    return svg("".join(parts), f"{y_name} by {x_name}")


def bar_chart(shares: dict[str, float], *, quiet: str) -> Markup:
    """Shares of 1 as bars with their names above them; that of `quiet` without colour."""
    parts, row = [], 36
    for i, (name, share) in enumerate(shares.items()):
        top = i * row
        length = max(1.0, share * (WIDTH - 48))
        parts.append(f'<text class="name" x="0" y="{top + 12}">{escape(name)}</text>')
        parts.append(f'<rect class="bar{" quiet" if name == quiet else ""}" x="0" y="{top + 18}" rx="2" ')
        parts.append(f'width="{length:.1f}" height="9"/>')
        parts.append(f'<text class="tick" x="{length + 6:.1f}" y="{top + 27}">{100 * share:.0f} %</text>')
    return svg("".join(parts), "shares of the variance", height=row * len(shares))
