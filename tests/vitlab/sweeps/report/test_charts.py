"""Charts: marks are where their values are, each is one well-formed SVG, and every name is escaped."""

import re
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from vitlab.sweeps.report import charts
from vitlab.sweeps.report.charts import Line, Point

EVIL = "<script>alert('\"&')</script>"


def parsed(drawn: Markup | None) -> ElementTree.Element:
    assert drawn is not None
    return ElementTree.fromstring(str(drawn))


@pytest.mark.parametrize("log", [False, True])
def test_an_axis_puts_values_between_its_ends_in_their_order(log: bool) -> None:
    axis = charts.Axis([1e-4, 1e-3, 0.1], 40, 300, log=log)
    places = [axis(v) for v in (1e-4, 1e-3, 0.1)]
    assert 40 < places[0] < places[1] < places[2] < 300
    assert 2 <= len(axis.ticks) <= 6
    if log:
        assert axis(1e-3) - axis(1e-4) == pytest.approx(axis(1e-2) - axis(1e-3), abs=0.2)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-9])
def test_a_single_value_has_an_axis_as_well(value: float) -> None:
    axis = charts.Axis([value], 0, 100)
    assert axis(value) == pytest.approx(50)
    assert axis.ticks


def test_a_number_is_short() -> None:
    shown = [charts.format_short(v) for v in (0, 0.25, 12.5, 1500, 25994, 3e6, 86_567_656, 1e-4, -2000)]
    assert shown == ["0", "0.25", "12.5", "1.5k", "26k", "3M", "86.6M", "1e-04", "-2k"]


def test_lines_have_bands_and_are_where_their_values_are() -> None:
    series = [Line("best", 0, [0, 10], [1.0, 0.5], [0.9, 0.4], [1.1, 0.6]), Line("other", 9, [0, 10], [2.0, 1.0])]
    drawn = parsed(charts.line_chart(series, x_name="images", y_name="loss"))
    groups = [g for g in drawn if g.get("data-c")]
    assert {g.get("class") for g in groups} == {"m c0", "m cx"}, "beyond the last colour: grey"
    assert [g.get("data-c") for g in groups if g.find("polyline") is not None] == ["9", "0"], "the first is on top"
    (best,) = [g.find("polyline") for g in groups if g.get("data-c") == "0" and g.find("polyline") is not None]
    assert best is not None
    (_, top), (_, bottom) = [tuple(map(float, p.split(","))) for p in best.get("points", "").split()]
    assert charts.TOP < top < bottom < charts.HEIGHT, "0.5 is below 1.0"
    assert len(drawn.findall(".//polygon")) == 1
    assert charts.line_chart([Line("none", 0, [], [])], x_name="x", y_name="y") is None


def test_accuracies_are_in_percent() -> None:
    drawn = parsed(charts.line_chart([Line("a", 0, [0, 1], [0.5, 1.0])], x_name="x", y_name="acc", percent=True))
    assert {"60 %", "80 %", "100 %"} <= {text.text for text in drawn.findall("text")}


def test_points_have_bars_and_the_front_is_joined() -> None:
    points = [Point("a", 0, 1, 0.5, 0.4, 0.6), Point("b", 1, 2, 0.7), Point("c", 2, 3, 0.6)]
    drawn = parsed(charts.scatter_chart(points, x_name="s", y_name="acc", front=[1, 0]))
    assert len(drawn.findall(".//circle")) == 3
    assert len([g for g in drawn if g.get("data-c") and g.find("line") is not None]) == 1
    front = next(line for line in drawn.findall("polyline") if line.get("class") == "front")
    xs = [float(place.split(",")[0]) for place in front.get("points", "").split()]
    assert len(xs) == 2
    assert xs == sorted(xs)
    assert charts.scatter_chart([], x_name="x", y_name="y") is None


def test_a_column_of_points_for_each_value_with_their_mean() -> None:
    columns = {
        "small": [Point("a", 0, 0, 1.0), Point("b", 1, 0, 3.0)],
        "a-very-long-name" * 4: [Point("c", 2, 0, 5.0)],
    }
    drawn = parsed(charts.strip_chart(columns, x_name="size", y_name="loss"))
    means = [line for line in drawn.findall("line") if line.get("class") == "mean"]
    circles = [float(circle.get("cy", "")) for circle in drawn.findall(".//circle")]
    assert float(means[0].get("y1", "")) == pytest.approx((circles[0] + circles[1]) / 2, abs=0.2)
    texts = [text.text or "" for text in drawn.findall("text")]
    assert "small" in texts
    assert any(text.endswith("…") and len(text) < 30 for text in texts)
    assert charts.strip_chart({"a": []}, x_name="x", y_name="y") is None


def test_every_name_is_escaped() -> None:
    drawn = [
        charts.line_chart([Line(EVIL, 0, [0, 1], [0, 1])], x_name=EVIL, y_name=EVIL),
        charts.scatter_chart([Point(EVIL, 0, 0, 0)], x_name=EVIL, y_name=EVIL),
        charts.strip_chart({EVIL: [Point(EVIL, 0, 0, 0)]}, x_name=EVIL, y_name=EVIL),
    ]
    for chart in drawn:
        tags = {element.tag for element in parsed(chart).iter()}
        assert tags <= {"svg", "g", "text", "title", "line", "polyline", "polygon", "circle"}
        assert not re.search(r"<script", str(chart))
