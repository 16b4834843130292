"""Exponents are slopes in logarithms; a real sweep over two sizes has them beside those of the FLOPs, and a picture."""

import math
from pathlib import Path

import pytest

from vitlab.benchmarking.scaling import Point, Scaling, slope
from vitlab.benchmarking.timing import Clock


def test_the_slope_of_a_power_is_its_exponent() -> None:
    assert slope([1, 2, 4, 8], [3 * size**1.5 for size in (1, 2, 4, 8)]) == pytest.approx(1.5)


def test_a_point_is_a_network_of_so_many_tokens_and_heads_of_64() -> None:
    size = Point(tokens=50, width=192, depth=2, batch=1).architecture()
    assert (size.tokens, size.image, size.heads, size.hidden, size.depth) == (50, 112, 3, 768, 2)
    assert Point(tokens=5, width=32, depth=1, batch=1).architecture().heads == 1


def test_time_and_flops_are_fitted_over_an_axis_and_drawn(tmp_path: Path) -> None:
    part = Scaling(axes=("batch",), batch=(1, 2), at=(5, 32, 1, 1), names=("timm",), task="inference")
    cases = list(part.cases(Clock(rounds=2, seconds=0)))
    assert [case.name for case in cases] == ["batch 1", "batch 2"]
    for case in cases:
        assert all(math.isfinite(m.figures["exponent"]) for m in case.measured)
    assert cases[0]["timm"].figures["FLOPs exponent"] == pytest.approx(1.0)
    assert [case["timm"].figures["size"] for case in cases] == [1, 2]
    assert all(0 < case["timm"].figures["MFU %"] < 1000 for case in cases)
    part.draw(cases, tmp_path)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
