"""A part checks its settings when it is made; exponents are slopes in logarithms."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from vitlab.benchmark.case import Case, Part, slope, with_exponents
from vitlab.config.bounds import NonNegativeInt, PositiveInt
from vitlab.diagnostics.timing import Clock, Measurement


@dataclass(kw_only=True)
class Example(Part):
    part = "example"
    fixed = ("hydra.", "batch_size=")

    workers: tuple[NonNegativeInt, ...] = (0, 1)
    fast: bool = False
    rounds: PositiveInt | None = None
    settings: tuple[str, ...] = ()

    def cases(self, clock: Clock) -> Iterator[Case]:
        yield from ()


def test_all_that_is_wrong_with_a_part_is_in_one_error() -> None:
    Example()
    with pytest.raises(ValueError, match="must be at least") as raised:
        Example(workers=(0, -1), rounds=0, settings=("++hydra.run.dir=a", "lr=1", "batch_size=2"))
    assert str(raised.value).splitlines() == [
        "example.workers=(0, -1) must be at least 0",
        "example.rounds=0 must be at least 1",
        "example.settings: ++hydra.run.dir=a is set by this part of the benchmark; leave it out",
        "example.settings: batch_size=2 is set by this part of the benchmark; leave it out",
    ]


def test_the_slope_of_a_power_is_its_exponent() -> None:
    assert slope([1, 2, 4, 8], [3 * size**1.5 for size in (1, 2, 4, 8)]) == pytest.approx(1.5)


@pytest.mark.parametrize(("unit", "exponent"), [("images", -2.0), (None, 2.0)])
def test_exponents_are_of_what_is_compared(unit: str | None, exponent: float) -> None:
    rows = [[Measurement(name=name, seconds=(size**2,)) for name in ("vitlab", "timm")] for size in (1, 3)]
    cases = [Case(part="p", name="", unit=unit, size=n, measured=row) for n, row in zip((1, 3), rows, strict=True)]
    for case in with_exponents(cases, [0.5, 0.7]):
        figures = [{name: pytest.approx(value) for name, value in m.figures.items()} for m in case.measured]
        assert figures == [{"exponent": exponent, "ideal exponent": ideal} for ideal in (0.5, 0.7)]
