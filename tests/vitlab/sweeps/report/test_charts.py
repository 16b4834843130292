"""Charts: marks are where their values are, each is one well-formed SVG, and every name is escaped."""

import re
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from vitlab.sweeps.report import charts
from vitlab.sweeps.report.charts import Chart
from vitlab.sweeps.report.table import MeanStd

EVIL = "<script>alert('\"&')</script> $x_1$ \x1b[2J"


def parsed(drawn: Markup | None) -> ElementTree.Element:
    """The drawn chart, without the names of SVG's namespace."""
    assert drawn is not None
    root = ElementTree.fromstring(str(drawn))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def texts(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter("text")]


def marks(root: ElementTree.Element, group: int | None = None) -> list[ElementTree.Element]:
    found = [mark for mark in root.iter() if "m" in mark.get("class", "").split()]
    return [mark for mark in found if group is None or mark.get("data-c") == str(group)]


def places(mark: ElementTree.Element) -> list[tuple[float, float]]:
    """The pixels of a mark: the ends of a line, or a point's middle."""
    if mark.tag == "circle":
        return [(float(mark.get("cx", "")), float(mark.get("cy", "")))]
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", mark.get("d", ""))]


def means(*values: float, deviation: float | None = None) -> dict[float, MeanStd]:
    return {10.0 * n: MeanStd(value, deviation) for n, value in enumerate(values)}


def test_a_number_is_short() -> None:
    shown = [charts.format_short(v) for v in (0, 0.25, 12.5, 1500, 25994, 3e6, 86_567_656, 1e-4, -2000)]
    assert shown == ["0", "0.25", "12.5", "1.5k", "26k", "3M", "86.6M", "1e-04", "-2k"]


def test_curves_have_bands_and_are_where_their_values_are() -> None:
    chart = Chart("images", "loss", log="y")
    chart.draw_curve(9, "other", means(2.0, 1.0, deviation=0.1))
    chart.draw_curve(0, "best", means(1.0, 0.5, deviation=0.1))
    chart.draw_curve(1, "empty", {})
    drawn = parsed(chart.markup())
    (gray,), (band, best) = marks(drawn, 9), marks(drawn, 0)
    assert gray.get("class") == "m line", "beyond the last color: gray, without a band"
    assert (band.get("class"), best.get("class")) == ("m band c0", "m line c0")
    assert len(places(band)) == 4, "there and back"
    assert best.findtext("title") == "best"
    (left, top), (right, bottom) = places(best)
    assert 0 < left < right < charts.WIDTH
    assert 0 < top < bottom < charts.HEIGHT, "0.5 is below 1.0"
    assert list(marks(drawn))[-1] is best, "the last one is on top"
    assert "#0000" not in str(chart.markup()), "all colors are the page's"


def test_an_empty_chart_is_none() -> None:
    assert Chart("x", "y").markup() is None


def test_a_long_curve_keeps_its_last_point_and_not_all_others() -> None:
    chart = Chart("images", "loss")
    chart.draw_curve(0, "a", means(*(float(n % 7) for n in range(1000))))
    chart.draw_point(1, "its end", 9990.0, 999.0 % 7)
    chart.draw_curve(8, "gray", means(*(float(n % 7) for n in range(1000))), gray=20)
    curve, end, gray = map(places, marks(parsed(chart.markup())))
    assert 10 < len(gray) <= 21
    assert gray[-1] == curve[-1]
    assert 100 < len(curve) <= charts.MAX_POINTS + 1
    assert curve[-1] == end[0]


def test_values_over_decades_have_a_logarithmic_axis_where_the_chart_may_have_one() -> None:
    chart = Chart("lr", "loss", log="x")
    for x, y in ((1e-4, 1.0), (1e-3, 100.0), (1e-2, 50.0)):
        chart.draw_point(0, "a", x, y)
    drawn = parsed(chart.markup())
    xs = [x for mark in marks(drawn) for x, _ in places(mark)]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.1)
    assert {"1e-04", "0.001", "0.01", "50", "100"} <= set(texts(drawn))


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-9])
def test_a_single_value_has_an_axis_as_well(value: float) -> None:
    chart = Chart("x", "y", log="xy")
    chart.draw_curve(0, "a", means(value))
    (mark,) = marks(parsed(chart.markup()))
    assert [round(place) for place in places(mark)[0]] == [211, 118], "in the middle"


def test_accuracies_are_in_percent() -> None:
    chart = Chart("x", "acc", percent=True)
    chart.draw_curve(0, "a", means(0.5, 1.0))
    assert {"60 %", "80 %", "100 %"} <= set(texts(parsed(chart.markup())))


def test_points_have_bars() -> None:
    chart = Chart("s", "acc")
    chart.draw_point(0, "a", 1, 0.5, 0.1)
    chart.draw_point(1, "b", 2, 0.7)
    drawn = parsed(chart.markup())
    bar, point = marks(drawn, 0)
    assert [place[0] for place in places(bar)] == [places(point)[0][0]] * 2
    assert len(marks(drawn, 1)) == 1


def test_a_column_of_points_for_each_value_with_their_mean() -> None:
    chart = Chart("size", "loss")
    chart.draw_columns({"small": [(0, "a", 1.0), (1, "b", 3.0)], "a-very-long-name" * 4: [(2, "c", 5.0)]})
    drawn = parsed(chart.markup())
    (one,), (two,), (three,) = (places(mark) for mark in marks(drawn))
    dashes = [path.get("d", "") for path in drawn.iter("path") if "stroke-opacity: 0.75" in path.get("style", "")]
    assert float(dashes[0].split()[2]) == pytest.approx((one[1] + two[1]) / 2, abs=0.2)
    assert one[0] < two[0] < three[0], "side by side"
    assert "small" in texts(drawn)
    assert any(text.endswith("…") and len(text) < 30 for text in texts(drawn))


def test_every_name_is_text() -> None:
    chart = Chart(EVIL, EVIL)
    chart.draw_columns({EVIL: [(0, EVIL, 1.0)]})
    drawn = parsed(chart.markup())
    assert {element.tag for element in drawn.iter()} <= {
        *("svg", "g", "text", "title", "path", "defs", "use", "clipPath", "rect", "circle")
    }
    shown = EVIL.replace("\x1b", r"\x1b")
    assert texts(drawn).count(shown) == 3
    assert [title.text for title in drawn.iter("title")] == [shown]
    assert "<script" not in str(chart.markup())
