"""Settings of a benchmark that can't be are told, each by value, knob and remedy."""

from typing import Any

import pytest

from vitlab.benchmarking import settings
from vitlab.reader import Reader

GOOD: dict[str, Any] = {"parts": ["networks", "scaling"], "rounds": 3, "seconds": 0.1, "threads": None}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"parts": []}, "parts=[] must name at least one part"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"seconds": -1}, "seconds=-1 must be 0 (a single call) or more"),
        ({"threads": 0}, "threads=0 must be at least 1, or null"),
        ({"networks": {"sizes": []}}, "networks.sizes=[] must have at least one entry"),
        ({"networks": {"modes": ["eager", "eager"]}}, "networks.modes=['eager', 'eager'] must have"),
        ({"networks": {"batches": [0]}}, "networks.batches=[0] must be at least 1 each"),
        ({"scaling": {"tokens": [50, 60]}}, "scaling.tokens: 60 tokens are not [cls] and a square of patches"),
        ({"scaling": {"width": [64, 100]}}, "scaling.width: a width of 100 is not a multiple of 64"),
        ({"scaling": {"axes": ["depth"], "depth": [2]}}, "scaling.depth=[2] has one size: an exponent needs two"),
        ({"scaling": {"at": [197, 192, 0, 1]}}, "scaling.at=[197, 192, 0, 1] must be at least 1 each"),
    ],
)
def test_what_can_not_be_measured_is_told(change: dict[str, Any], problem: str) -> None:
    (found,) = settings.problems(Reader(GOOD | change, set()))
    assert found.startswith(problem)


def test_nothing_is_wrong_with_good_settings_nor_with_other_commands() -> None:
    whole = GOOD | {"scaling": {"tokens": [50, 785], "axes": ["tokens"], "at": [197, 192, 4, 2]}}
    assert list(settings.problems(Reader(whole, set()))) == []
    assert list(settings.problems(Reader({"rounds": 0}, set()))) == []
