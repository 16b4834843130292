"""Charts of a report: SVG whose axes matplotlib draws, in colors of the page's style sheet, for light and dark mode.

The marks of configuration k have the class `m` and `data-c="k"`, by which the page's script finds them, and a
`<title>`. They are written without matplotlib, which takes a millisecond and 200 bytes for each.
"""

import io
from collections.abc import Mapping, Sequence
from itertools import islice
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from vitlab.config.printable import one_line
from vitlab.sweeps.report.table import MeanStd

COLORS = 8  # that can be distinguished; further configurations are gray
WIDTH, HEIGHT = 380, 250
MAX_POINTS = 200  # of a curve
# the style sheet's variables, and the colors that stand for them until the chart is drawn
VARIABLES = {f"var(--{name})": f"#0000{number:02x}" for number, name in enumerate(["ink", "muted", "line"], 1)}
INK, MUTED, LINE = VARIABLES.values()


class Chart:
    """An empty chart. Of its axes those in `log` ("x", "y") are logarithmic if their values span decades."""

    def __init__(self, x_name: str, y_name: str, *, log: str = "", percent: bool = False) -> None:
        self.name, self.log = one_line(f"{y_name} against {x_name}"), log
        self.marks = list[tuple[int, str, str, list[tuple[float, float]]]]()  # group, title, shape, points
        self.figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
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

    def draw_curve(self, group: int, title: str, curve: Mapping[float, MeanStd], *, gray: int = MAX_POINTS) -> None:
        """Draw means with a band of one standard deviation; of a gray curve the means alone, at `gray` points."""
        points = list(curve.items())
        step = -(-len(points) // (MAX_POINTS if group < COLORS else min(gray, MAX_POINTS))) or 1
        points = points[:-1:step] + points[-1:]
        if group < COLORS and points and all(score.deviation is not None for _, score in points):
            low, high = ([(x, s.mean + sign * (s.deviation or 0.0)) for x, s in points] for sign in (-1, 1))
            self.marks.append((group, title, "band", low + high[::-1]))
        if points:
            shape = "line" if len(points) > 1 else "point"
            self.marks.append((group, title, shape, [(x, score.mean) for x, score in points]))

    def draw_point(self, group: int, title: str, x: float, y: float, deviation: float | None = None) -> None:
        if deviation is not None:
            self.marks.append((group, title, "line", [(x, y - deviation), (x, y + deviation)]))
        self.marks.append((group, title, "point", [(x, y)]))

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

    def markup(self) -> Markup | None:
        """Return the chart as an element of a page, without matplotlib's own names and sizes; None if it is empty."""
        if not self.marks:
            return None
        points = np.array([point for *_, points in self.marks for point in points])
        self.axes.update_datalim(points)
        self.axes.autoscale_view()
        for name, axis in (("x", self.axes.xaxis), ("y", self.axes.yaxis)):
            low, high = axis.get_data_interval()
            if name in self.log and low > 0 and high / low > 30:
                self.axes.set(**{f"{name}scale": "log"})
                axis.set(major_locator=LogLocator(numticks=5), major_formatter=format_short)
        self.axes.minorticks_off()
        content = io.BytesIO()
        with rc_context({"svg.fonttype": "none"}):
            self.figure.savefig(content, format="svg", transparent=True)
        ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
        root = ElementTree.fromstring(content.getvalue())
        root.attrib = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": self.name, "class": "chart"}
        for unused in root.findall("{*}metadata") + root.findall("{*}defs[{*}style]"):
            root.remove(unused)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]  # HTML needs no namespace
            if element.tag == "g":
                element.attrib.pop("id", None)
        places = iter((self.axes.transData.transform(points) * (1, -1) + (0, HEIGHT)).tolist())
        for group, title, shape, ends in self.marks:
            at = [f"{x:.1f} {y:.1f}" for x, y in islice(places, len(ends))]
            cx, cy = at[0].split()
            place = {"cx": cx, "cy": cy} if shape == "point" else {"d": "M" + "L".join(at)}
            names = {"class": f"m {shape} c{group}" if group < COLORS else f"m {shape}", "data-c": str(group)}
            mark = ElementTree.SubElement(root, "circle" if shape == "point" else "path", names | place)
            ElementTree.SubElement(mark, "title").text = one_line(title)
        text = ElementTree.tostring(root, encoding="unicode")
        for variable, stand_in in VARIABLES.items():
            text = text.replace(stand_in, variable)
        return Markup(text)


def format_short(value: float, _: object = None) -> str:
    """Format a number in few characters: 0.25, 1.5k, 3M, 1e-04."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.0e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"
