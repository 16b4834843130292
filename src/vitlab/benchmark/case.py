"""A case of the benchmark, one comparison of contenders in the same rounds; and a part, a class of cases."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, get_type_hints

import numpy as np

from vitlab.config.annotations import bound_problem
from vitlab.config.schema import format_value
from vitlab.diagnostics.timing import Clock, Measurement

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
    """A part of the benchmark. Its fields are its settings; the constructor only checks them.

    part   its name on the command line
    fixed  prefixes of settings of train.py that the part sets, and `settings` may not
    """

    part: ClassVar[str]
    fixed: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if problems := list(self.problems()):
            raise ValueError("\n".join(problems))

    def problems(self) -> Iterator[str]:
        """Problems of the settings, except for their types."""
        for name, annotation in get_type_hints(type(self), include_extras=True).items():
            if problem := bound_problem(getattr(self, name), annotation):
                yield f"{self.part}.{name}={format_value(getattr(self, name))} {problem}"
        for line in getattr(self, "settings", ()):
            if line.lstrip("+~").startswith(self.fixed):
                yield f"{self.part}.settings: {line} is set by this part of the benchmark; leave it out"

    def runs(self, device: str) -> Mapping[str, list[str]]:
        """The settings of the runs of `train.py` that the part measures, by name."""
        return {}

    @abstractmethod
    def cases(self, clock: Clock) -> Iterator[Case]:
        """Measure the cases one after the other."""
