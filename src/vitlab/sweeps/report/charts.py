"""Charts of a report: matplotlib's SVG, with colors that the page's style sheet sets, for light and dark mode alike.

The marks of configuration k are in groups of the class `m` with `data-c="k"`, by which the page's script finds them,
and have a `<title>`.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from vitlab.config.printable import one_line
from vitlab.sweeps.report.table import MeanStd

COLORS = 8  # that can be distinguished; further configurations are gray
WIDTH, HEIGHT = 380, 250
MAX_POINTS = 200  # of a curve
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# the style sheet's variables, and the colors that stand for them until the chart is drawn
VARIABLES = {
    f"var(--{name})": f"#0000{number:02x}"
    for number, name in enumerate(["ink", "muted", "line", "paper", "cx", *(f"c{k}" for k in range(COLORS))], 1)
}
INK, MUTED, LINE, PAPER, GRAY, *PALETTE = VARIABLES.values()


class Chart:
    """An empty chart. Of its axes those in `log` ("x", "y") are logarithmic if their values span decades."""

    def __init__(self, x_name: str, y_name: str, *, log: str = "", percent: bool = False) -> None:
        self.name, self.log = one_line(f"{y_name} against {x_name}"), log
        self.items = list[tuple[int, str]]()  # the group and the title of each mark
        self.figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        self.figure.text(0, 0.95, one_line(y_name), color=INK, size=13, parse_math=False)
        self.axes = self.figure.add_axes((0.12, 0.16, 0.87, 0.74))
        self.axes.set_xlabel(one_line(x_name), loc="right", color=MUTED, size=12, parse_math=False)
        self.axes.spines[["left", "top", "right"]].set_visible(False)
        self.axes.spines["bottom"].set_color(MUTED)
        self.axes.grid(axis="y", color=LINE)
        self.axes.set_axisbelow(True)
        self.axes.margins(0.06)
        self.axes.tick_params(length=0, labelsize=12, labelcolor=MUTED)
        for axis in (self.axes.xaxis, self.axes.yaxis):
            axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(format_short)
        if percent:
            self.axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")

    def draw_curve(self, group: int, title: str, curve: Mapping[float, MeanStd]) -> None:
        """Draw means with a band of one standard deviation to both sides; of gray ones the means alone."""
        points = list(curve.items())
        points = points[: -1 : -(-len(points) // MAX_POINTS) or 1] + points[-1:]
        x, y = [x for x, _ in points], [score.mean for _, score in points]
        style: dict[str, Any] = {"lw": 1.8} if group < COLORS else {"lw": 1.0, "alpha": 0.5}
        if group < COLORS and points and all(score.deviation is not None for _, score in points):
            low, high = ([s.mean + sign * (s.deviation or 0.0) for _, s in points] for sign in (-1, 1))
            self.mark(group, title, [self.axes.fill_between(x, low, high, color=color(group), alpha=0.13, lw=0)])
        if points:
            self.mark(group, title, self.axes.plot(x, y, "-" if len(x) > 1 else "o", color=color(group), **style))

    def draw_point(self, group: int, title: str, x: float, y: float, deviation: float | None = None) -> None:
        if deviation is not None:
            self.mark(group, title, self.axes.plot([x, x], [y - deviation, y + deviation], color=color(group)))
        self.mark(group, title, self.axes.plot(x, y, "o", mfc=color(group), mec=PAPER, ms=9))

    def draw_columns(self, columns: Mapping[str, Sequence[tuple[int, str, float]]]) -> None:
        """Draw points side by side above each name, with a dash at their mean."""
        room = max(3, 48 // len(columns))  # characters
        names = [name if len(name) <= room else f"{name[: room - 1]}…" for name in map(one_line, columns)]
        self.axes.set_xticks(range(len(columns)), names, parse_math=False)
        self.axes.set_xlim(-0.5, len(columns) - 0.5)
        for column, points in enumerate(columns.values()):
            mean = sum(y for *_, y in points) / len(points)
            self.axes.plot([column - 0.3, column + 0.3], [mean, mean], color=INK, alpha=0.75)
            for n, (group, title, y) in enumerate(points):
                self.draw_point(group, title, column + (n - (len(points) - 1) / 2) * min(0.1, 0.9 / len(points)), y)

    def draw_front(self, points: Sequence[tuple[float, float]]) -> None:
        x, y = [x for x, _ in sorted(points)], [y for _, y in sorted(points)]
        self.axes.plot(x, y, ":", color=MUTED, lw=1.2)

    def mark(self, group: int, title: str, artists: Sequence[Artist]) -> None:
        for artist in artists:
            artist.set_gid(f"mark{len(self.items)}")
            artist.set_clip_on(False)
            self.items.append((group, title))

    def markup(self) -> Markup | None:
        """Return the chart as an element of a page, without matplotlib's own names and sizes; None if it is empty."""
        if not self.items:
            return None
        for name, axis in (("x", self.axes.xaxis), ("y", self.axes.yaxis)):
            low, high = axis.get_data_interval()
            if name in self.log and low > 0 and high / low > 30:
                self.axes.set(**{f"{name}scale": "log"})
                axis.set(major_locator=LogLocator(numticks=5), major_formatter=format_short)
        self.axes.minorticks_off()
        content = io.BytesIO()
        with rc_context({"svg.fonttype": "none"}):
            self.figure.savefig(content, format="svg", transparent=True)
        ElementTree.register_namespace("", SVG)
        ElementTree.register_namespace("xlink", XLINK)
        root = ElementTree.fromstring(content.getvalue())
        root.attrib = {
            "viewBox": f"0 0 {WIDTH} {HEIGHT}",
            "role": "img",
            "aria-label": self.name,
            "class": "chart",
        }
        for unused in root.findall("{*}metadata") + root.findall("{*}defs[{*}style]"):
            root.remove(unused)
        for element in root.iter(f"{{{SVG}}}g"):
            name = element.attrib.pop("id", "")
            if name.startswith("mark"):
                group, title = self.items[int(name.removeprefix("mark"))]
                element.attrib = {"class": "m", "data-c": str(group)}
                ElementTree.SubElement(element, f"{{{SVG}}}title").text = one_line(title)
        text = ElementTree.tostring(root, encoding="unicode")
        for variable, stand_in in VARIABLES.items():
            text = text.replace(stand_in, variable)
        return Markup(text)


def color(group: int) -> str:
    return PALETTE[group] if group < COLORS else GRAY


def format_short(value: float, _: object = None) -> str:
    """Format a number in few characters: 0.25, 1.5k, 3M, 1e-04."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.0e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"
