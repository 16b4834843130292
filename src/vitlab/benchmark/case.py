"""A part of the benchmark, and a case: one comparison, in which all contenders did the same in the same rounds."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from vitlab.config.schema import format_value
from vitlab.diagnostics.timing import Clock, Measurement

OURS = "vitlab"
EXPONENT, IDEAL = "exponent", "ideal exponent"  # figures: of a line through the sizes, log against log


@dataclass(frozen=True, kw_only=True)
class Case:
    """unit  what is counted per second ("images"); None where seconds are compared
    axis  what is varied between cases ("tokens"), and `size`, its value here
    """

    part: str
    name: str
    measured: Sequence[Measurement]
    unit: str | None = "images"
    axis: str | None = None
    size: float = math.nan

    def __getitem__(self, name: str) -> Measurement:
        return next(measurement for measurement in self.measured if measurement.name == name)

    @property
    def has_ours(self) -> bool:
        return any(measurement.name == OURS for measurement in self.measured)

    def speed(self, measurement: Measurement) -> float:
        """Items per second, or the seconds of a call."""
        return measurement.rate if self.unit else measurement.median


def with_exponents(cases: Sequence[Case], ideal: Sequence[float]) -> list[Case]:
    """Cases of one axis with the exponent of each contender's speed ~ size ^ exponent, and with the ideal ones."""
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

    part     its name on the command line
    minimum  of the integers among its settings that may not be at least 1
    fixed    settings of train.py that the part makes itself, by what they begin with: `settings` may not hold them
    """

    part: ClassVar[str]
    minimum: ClassVar[Mapping[str, int]] = {}
    fixed: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if problems := list(self.problems()):
            raise ValueError("\n".join(problems))

    def problems(self) -> Iterator[str]:
        """What is wrong with the settings, beyond their types."""
        for name, value in vars(self).items():
            entries = [*value.values()] if isinstance(value, Mapping) else value
            least = self.minimum.get(name, 1)
            if any(type(n) is int and n < least for n in (entries if isinstance(entries, list | tuple) else [entries])):
                yield f"{self.part}.{name}={format_value(value)} must be at least {least}"
        for line in getattr(self, "settings", ()):
            if line.lstrip("+~").startswith(self.fixed):
                yield f"{self.part}.settings: {line} is set by this part of the benchmark; leave it out"

    def runs(self, device: str) -> Mapping[str, list[str]]:
        """The settings of each run of `train.py` that the part composes or starts, by name."""
        return {}

    @abstractmethod
    def cases(self, clock: Clock) -> Iterator[Case]:
        """Cases as they are measured."""
