"""A real sweep over two sizes has the exponents of time and FLOPs; impossible sizes are refused."""

import math

import pytest

from vitlab.benchmark.scaling import Scaling
from vitlab.diagnostics.timing import CPU, Clock


def test_time_and_flops_are_fitted_over_each_axis() -> None:
    part = Scaling(tokens=(), width=(), depth=(), batch=(1, 2), at=(5, 32, 1, 1), networks=("timm",), task="inference")
    cases = list(part.cases(Clock(rounds=2, seconds=0)))
    assert [(case.name, case.axis, case.size) for case in cases] == [("batch 1", "batch", 1), ("batch 2", "batch", 2)]
    for case in cases:
        assert math.isfinite(case["timm"].figures["exponent"])
        assert case["timm"].figures["ideal exponent"] == pytest.approx(1.0)
        assert 0 < case["timm"].figures["MFU %"] < 1000


def test_the_network_of_a_size_has_so_many_tokens_and_heads_of_64() -> None:
    found = Scaling().contender("timm", {"tokens": 50, "width": 128, "depth": 2, "batch": 1}, CPU)
    patches, block, head = 3 * 16 * 16 * 128 + 128, 12 * 128**2 + 13 * 128, 1000 * 128 + 1000
    assert found.figures["M parameters"] * 1e6 == patches + 51 * 128 + 2 * block + 2 * 128 + head


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="scaling") as raised:
        Scaling(tokens=(50, 60), depth=(2,), at=(1, 192, 0, 2))
    assert str(raised.value).splitlines() == [
        "scaling.at=(1, 192, 0, 2) must be at least 1",
        "scaling.depth needs two sizes, or none",
        "scaling.tokens: [60, 1] are not [cls] and a square of patches; use [50, 2]",
    ]
