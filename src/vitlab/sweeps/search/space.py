"""The search space: settings with a range each, in Hydra's own sweep grammar.

    hydra:
      sweeper:
        params:
          optimizer.lr: tag(log, interval(1e-4, 1e-2))     any number between (of four digits), on a logarithmic scale
          model.depth: int(interval(2, 6))                 an integer, both ends included
          model.dim: range(32, 129, 32)                    32, 64, 96, 128
          schedule: choice(warmup_cosine, reciprocal_sqrt)

The same on the command line: `-m 'optimizer.lr=tag(log, interval(1e-4, 1e-2))'`. The command line takes precedence: a
value there instead of a range removes the setting from the search. Used for grids as well, so without Optuna.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from vitlab.config.schema import suggest


class InvalidSearchSpace(ValueError):
    """The search space has mistakes; `problems` has a line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Parameter:
    """A searched setting: a choice of `values`, as in an override, or numbers; `override_key` may have a prefix."""

    key: str
    override_key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False

    @property
    def bounds(self) -> tuple[Any, ...]:
        """All values of a choice, or the smallest and the largest number."""
        return self.values or tuple(dict.fromkeys((self.low, self.high)))

    def as_override(self, value: Any) -> str:
        """Return the override with a suggested value; a continuous one is rounded to four digits, within the bounds."""
        if not self.values and self.step is None and value not in self.bounds:
            value = min(max(float(f"{value:.4g}"), self.low), self.high)
        return f"{self.override_key}={value}"


def boundary_points(parameters: Sequence[Parameter], known: Collection[str] = ()) -> list[list[str]]:
    """Return overrides that together cover every choice and both bounds of all numbers, except of `known` keys."""
    first = [p.as_override(p.bounds[0]) for p in parameters]
    others = [(i, p.as_override(v)) for i, p in enumerate(parameters) if p.key not in known for v in p.bounds[1:]]
    return [first, *([*first[:i], line, *first[i + 1 :]] for i, line in others)]


def read_space(
    lines: Sequence[str], params: Any, loader: ConfigLoader | None = None
) -> tuple[list[Parameter], list[str]]:
    """Return the parameters of a command line and `hydra.sweeper.params`, and the overrides that all trials share.

    Raises `InvalidSearchSpace` with every mistake. `loader` knows the options of a group, for `glob(...)`.
    """
    if not isinstance(params, Mapping | None):
        raise InvalidSearchSpace([f"hydra.sweeper.params={params} is not a mapping of settings to ranges"])
    parser, problems, overrides = OverridesParser.create(config_loader=loader), list[str](), dict[str, Override]()
    given = list[str]()
    for key, value in (params or {}).items():
        if isinstance(value, str | int | float):
            given.append(f"{key}={value}")
        else:
            problems.append(f"hydra.sweeper.params.{key}={value} is not a range; write it as text: choice(a, b)")
    for line in [*given, *lines]:
        try:
            override = parser.parse_override(line)
        except HydraException as error:
            problems.append(f"{line!r} is not an override ({str(error).splitlines()[0]})")
        else:
            override.config_loader = loader
            overrides[override.key_or_group] = override
    parameters, shared = list[Parameter](), list[str]()
    for override in overrides.values():
        if not override.is_sweep_override():
            shared.append(override.input_line or "")
            continue
        try:
            parameters.append(build_parameter(override))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise InvalidSearchSpace(problems)
    return parameters, shared


def build_parameter(override: Override) -> Parameter:
    """Return the parameter of an override with a range. Raises `ValueError` for an empty or contradictory range."""
    text, value, keys = override.input_line, override.value(), (override.key_or_group, override.get_key_element())
    tags = set(getattr(value, "tags", ()))
    log = "log" in tags
    if unknown := sorted(tags - {"log"}):
        raise ValueError(f"{text}: there is no tag {unknown[0]!r}{suggest(unknown[0], ['log'])}; the only one is log")
    if not isinstance(value, IntervalSweep | RangeSweep):
        values = tuple(override.sweep_string_iterator())
        if log:
            raise ValueError(f"{text}: a choice has no scale; use interval or range, or remove the tag log")
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{text} " + ("has a value twice" if values else "has nothing to choose from"))
        return Parameter(*keys, values=values)
    if isinstance(value, IntervalSweep):
        low, high = value.start or 0, value.end or 0
        step: float | None = 1 if isinstance(low, int) and isinstance(high, int) else None
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"{text} is empty or infinite: write the lower bound first, then the upper")
    else:
        numbers, step = sorted(value.range()), abs(value.step)
        if not numbers:
            raise ValueError(f"{text} is empty: a range includes its first number, and not its last")
        low, high = numbers[0], numbers[-1]
        if log and step != 1:
            raise ValueError(f"{text}: a logarithmic range has steps of 1; use interval, or remove the tag log")
    if log and low <= 0:
        raise ValueError(f"{text}: a logarithmic scale begins above 0")
    return Parameter(*keys, low=low, high=high, step=step, log=log)
