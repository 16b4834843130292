"""A case of the benchmark, one comparison of contenders in the same rounds; and a part, a class of cases."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from benchmark.timing import Clock, Measurement

OURS = "vitlab"
EXPONENT, IDEAL = "exponent", "ideal exponent"  # figures: of a line through the sizes, log against log


@dataclass(frozen=True, kw_only=True)
class Case:
    """unit  of the items per second ("images"); None to compare seconds
    axis  varied between cases ("tokens"), and `size`, its value in this one
    """

    part: str
    name: str
    measured: Sequence[Measurement]
    unit: str | None = "images"
    axis: str | None = None
    size: float = math.nan

    def __getitem__(self, name: str) -> Measurement:
        return next(measurement for measurement in self.measured if measurement.name == name)

    def speed(self, measurement: Measurement) -> float:
        return measurement.rate if self.unit else measurement.median


def with_exponents(cases: Sequence[Case], ideal: Sequence[float]) -> list[Case]:
    """Cases of one axis with each contender's exponent, of speed ~ size ^ exponent, and the ideal one as figures."""
    sizes, columns = [case.size for case in cases], []
    for best, *row in zip(ideal, *(case.measured for case in cases), strict=True):
        fit = {EXPONENT: slope(sizes, [case.speed(m) for case, m in zip(cases, row, strict=True)]), IDEAL: best}
        columns.append([replace(m, figures={**m.figures, **fit}) for m in row])
    return [replace(case, measured=row) for case, row in zip(cases, zip(*columns, strict=True), strict=True)]


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the least-squares line through the logarithms: values ~ sizes ^ slope."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


@dataclass(kw_only=True)
class Part(ABC):
    """A part of the benchmark: `part` is its name on the command line, its fields are its settings."""

    part: ClassVar[str]

    @abstractmethod
    def cases(self, clock: Clock) -> Iterator[Case]:
        """Measure the cases one after the other."""
