"""What a search chooses from: parameters in Hydra's own sweep grammar, some of them only where others have a value.

    hydra:
      sweeper:
        params:
          optimizer.lr: tag(log, interval(1e-4, 1e-2))     any number between (of four digits), on a logarithmic scale
          model.depth: int(interval(2, 6))                 a whole number, both ends included
          model.dim: range(32, 129, 32)                    32, 64, 96, 128
          schedule: choice(warmup_cosine, reciprocal_sqrt)
        when:
          schedule=reciprocal_sqrt:                        one value, or several: schedule=a,b
            schedule.cooldown_steps: int(interval(0, 100))

The same on the command line: `-m 'optimizer.lr=tag(log, interval(1e-4, 1e-2))'`. What stands there goes before the
files: a value instead of a range takes the parameter out of the search. Light on purpose: composing must not import
Optuna.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from vitlab.schema import suggest

Condition = tuple[str, tuple[str, ...]]  # a key, and the values with which the condition holds


class NotASpace(ValueError):
    """What is searched is written wrongly; `problems` has a line for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Parameter:
    """A setting that is searched: some `values`, as they are spelt in an override, or numbers from `low` to `high`.

    `name` is what the study calls it: the key, with the condition where the key stands under several; `written` is the
    key with the prefix that an override needs.
    """

    key: str
    name: str
    written: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    when: tuple[Condition, ...] = ()

    def trained(self, value: Any) -> Any:
        """A suggested value as it is trained with: of a number that may be any, four digits."""
        if self.values or self.step is not None or value in (self.low, self.high):
            return value
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    def spelt(self, value: Any) -> str:
        """The override that gives the setting a value."""
        value = self.trained(value)
        return f"{self.written}={value!r}" if isinstance(value, float) else f"{self.written}={value}"

    @property
    def ends(self) -> tuple[Any, ...]:
        """All values of a choice, the smallest and the largest of numbers."""
        return self.values or ((self.low,) if self.low == self.high else (self.low, self.high))

    @property
    def all(self) -> tuple[Any, ...] | None:
        """Every value, or None where there is no end of them."""
        if self.values:
            return self.values
        if self.step is None:
            return None
        count = round((self.high - self.low) / self.step) + 1
        return tuple(self.low + self.step * number for number in range(count))


@dataclass(frozen=True)
class Space:
    """Parameters, each after those that its condition asks for; and the settings that stay, by key."""

    parameters: tuple[Parameter, ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict)

    def chosen(self, choose: Callable[[Parameter], Any]) -> dict[str, Any]:
        """Asks for a value of each parameter whose condition holds with the values before; by key."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if holds(parameter.when, {**self.fixed, **values}):
                values[parameter.key] = choose(parameter)
        return values

    def overrides(self, choose: Callable[[Parameter], Any]) -> list[str]:
        """The same as overrides."""
        lines: list[str] = []

        def spell(parameter: Parameter) -> Any:
            value = choose(parameter)
            lines.append(parameter.spelt(value))
            return value

        self.chosen(spell)
        return lines

    def corners(self, known: Collection[str] = ()) -> Iterator[list[str]]:
        """Overrides that together hold every value of each choice and both ends of all numbers, but of `known` keys."""
        yielded: list[list[str]] = []
        for parameter in self.parameters:
            for value in parameter.ends if parameter.key not in known else ():
                forced = {**self._demanded(parameter), parameter.name: value}
                lines = self.overrides(lambda p, forced=forced: forced.get(p.name, p.ends[0]))  # type: ignore[misc]
                if lines not in yielded:
                    yielded.append(lines)
                    yield lines

    def _demanded(self, parameter: Parameter) -> dict[str, Any]:
        """Values, by name, with which a parameter's condition holds."""
        forced: dict[str, Any] = {}
        for key, allowed in parameter.when:
            for other in self.parameters:
                if other.key == key:
                    forced |= {**self._demanded(other), other.name: next(v for v in other.values if v in allowed)}
                    break
        return forced

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination of values, by the parameters' names. Raises `NotASpace` where there is no end of them."""
        endless = [p for p in self.parameters if p.all is None]
        if endless:
            remedy = "use choice(...) or range(...), or hydra/sweeper=optuna"
            raise NotASpace([f"{p.key} has no end of values, which no grid can go through; {remedy}" for p in endless])

        def below(rest: Sequence[Parameter], values: dict[str, Any], names: dict[str, Any]) -> Iterator[dict[str, Any]]:
            if not rest:
                yield names
                return
            first = rest[0]
            if not holds(first.when, {**self.fixed, **values}):
                yield from below(rest[1:], values, names)
                return
            for value in first.all or ():
                yield from below(rest[1:], {**values, first.key: value}, {**names, first.name: value})

        return below(self.parameters, {}, {})


def shown(condition: Condition) -> str:
    """A condition as it is written."""
    return f"{condition[0]}={','.join(condition[1])}"


def holds(conditions: Sequence[Condition], values: Mapping[str, Any]) -> bool:
    """Whether all of a parameter's conditions hold."""
    return all(key in values and str(values[key]) in allowed for key, allowed in conditions)


# ---------------------------------------------------------------------------------------------------------- reading


def read(lines: Sequence[str], params: Any, when: Any, loader: ConfigLoader | None = None) -> tuple[Space, list[str]]:
    """The space that a command line and `hydra.sweeper.{params,when}` say, and the overrides that every trial has.

    Raises `NotASpace` with all mistakes. `loader` knows the options of a group, for `glob(...)`.
    """
    parser, problems = OverridesParser.create(config_loader=loader), list[str]()

    def parsed(place: str, line: str) -> Override | None:
        try:
            override = parser.parse_override(line)
        except HydraException as error:
            problems.append(f"{place}: {line!r} is no override ({str(error).splitlines()[0]})")
            return None
        override.config_loader = loader
        return override

    found: list[tuple[str, Override, tuple[Condition, ...]]] = []
    given = {o.key_or_group: o for line in lines if (o := parsed("command line", line))}
    found += [("", o, ()) for o in given.values()]
    for key, text in entries("hydra.sweeper.params", params, problems):
        if key not in given and (override := parsed("hydra.sweeper.params", f"{key}={text}")):
            found.append(("hydra.sweeper.params.", override, ()))
    for condition, inner in (when or {}).items() if isinstance(when, Mapping | None) else [("", when)]:
        place = f"hydra.sweeper.when.{condition}"
        conditions = tuple(
            c for part in str(condition).split() if (c := read_condition(place, parsed(place, part), problems))
        )
        if not isinstance(inner, Mapping):
            problems.append(f"{place} has no parameters below it; write KEY: RANGE, or leave it out")
            continue
        for key, text in entries(place, inner, problems):
            if key not in given and (override := parsed(place, f"{key}={text}")):
                found.append((f"{place}.", override, conditions))
    parameters, constants = [], dict[str, str]()
    keys = [o.key_or_group for _, o, _ in found]
    for place, override, conditions in found:
        key = override.key_or_group
        if not override.is_sweep_override():
            if conditions:
                problems.append(f"{place}{key}={override.get_value_element_as_str()} is one value: nothing to search")
            elif not override.is_delete():
                constants[key] = override.get_value_element_as_str()
            continue
        name = key if keys.count(key) == 1 else f"{key} ({' '.join(map(shown, conditions))})"
        try:
            parameters.append(parameter(override, name, conditions))
        except ValueError as error:
            problems.append(f"{place}{error}")
    problems += condition_problems(parameters, constants)
    if problems:
        raise NotASpace(problems)
    fixed = [o.input_line or "" for _, o, c in found if not o.is_sweep_override()]
    return Space(in_order(parameters), constants), fixed


def entries(place: str, mapping: Any, problems: list[str]) -> Iterator[tuple[str, str]]:
    """Keys and ranges of a mapping in a file."""
    if mapping is None:
        return
    if not isinstance(mapping, Mapping):
        problems.append(f"{place}={mapping} is not a mapping of settings to what they are chosen from")
        return
    for key, value in mapping.items():
        if isinstance(value, str | int | float | bool):
            yield str(key), str(value).lower() if isinstance(value, bool) else str(value)
        else:
            problems.append(f"{place}.{key}={value} is nothing to choose from; write it as text: choice(a, b)")


def read_condition(place: str, override: Override | None, problems: list[str]) -> Condition | None:
    """`schedule=a,b` as a key and its values."""
    if override is None:
        return None
    if override.is_sweep_override() and not override.is_discrete_sweep():
        problems.append(f"{place} names no values; write {override.key_or_group}=VALUE, or several with commas")
        return None
    if not override.is_sweep_override():
        return override.key_or_group, (override.get_value_element_as_str(),)
    return override.key_or_group, tuple(override.sweep_string_iterator())


def parameter(override: Override, name: str, when: tuple[Condition, ...]) -> Parameter:
    """An override's range as a parameter. Raises `ValueError` for one that says nothing."""
    key, written, value = override.key_or_group, override.get_key_element(), override.value()
    tags = set(getattr(value, "tags", ()))
    text = f"{override.key_or_group}={(override.input_line or '').partition('=')[2]}"
    if unknown := sorted(tags - {"log"}):
        raise ValueError(f"{text}: there is no tag {unknown[0]!r}{suggest(unknown[0], ['log'])}; log is the only one")
    log = "log" in tags
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        assert low is not None
        assert high is not None
        step: float | None = 1 if isinstance(low, int) and isinstance(high, int) else None
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"{text} is empty: write the lower end first, then the upper")
    elif isinstance(value, RangeSweep):
        numbers = sorted(set(value.range()))
        if not numbers:
            raise ValueError(f"{text} is empty: the first number is in it, the last isn't")
        low, high, step = numbers[0], numbers[-1], abs(value.step)
        if log and step != 1:
            raise ValueError(f"{text}: a logarithmic range has steps of 1; use interval, or leave out the tag")
    else:
        if log:
            raise ValueError(f"{text}: a choice has no scale; use interval or range, or leave out the tag log")
        values = list(override.sweep_string_iterator())
        if not values:
            raise ValueError(f"{text} has nothing to choose from")
        if len(set(values)) < len(values):
            raise ValueError(f"{text} has a value twice")
        return Parameter(key, name, written, tuple(values), when=when)
    if log and low <= 0:
        raise ValueError(f"{text}: a logarithmic scale begins above 0")
    return Parameter(key, name, written, low=low, high=high, step=step, log=log, when=when)


def condition_problems(parameters: Sequence[Parameter], constants: Mapping[str, str]) -> list[str]:
    """What is wrong with conditions: what they ask for can't be, or two of them hold at once."""
    found: dict[str, None] = {}
    searched = {p.key for p in parameters}
    for parameter in parameters:
        for key, allowed in parameter.when:
            text = f"hydra.sweeper.when.{shown((key, allowed))}"
            if key in constants:
                continue  # one value: the condition always holds, or never
            if key not in searched:
                found[f"{text}: {key} is not searched{suggest(key, searched)}; add it to the parameters"] = None
                continue
            others = [p for p in parameters if p.key == key]
            if any(p.all is None for p in others):
                found[f"{text}: {key} is a range of numbers, and a condition asks for a choice's value"] = None
                continue
            possible = [str(value) for p in others for value in p.all or ()]
            for value in allowed:
                if value not in possible:
                    hint = suggest(value, possible)
                    found[f"{text}: {value} is none of {key}'s values{hint} (of {', '.join(possible)})"] = None
    for one, two in itertools.combinations(parameters, 2):
        if one.key == two.key and not exclusive(one.when, two.when):
            found[f"{one.key} stands twice among the parameters, under conditions that can hold at once"] = None
    if not found and len(in_order(parameters)) < len(parameters):
        stuck = ", ".join(p.key for p in parameters if p not in in_order(parameters))
        found[f"hydra.sweeper.when: each of {stuck} waits for another of them; break the circle"] = None
    return list(found)


def exclusive(one: Sequence[Condition], two: Sequence[Condition]) -> bool:
    """Whether two conditions can't hold at once."""
    return any(k == j and not set(v) & set(w) for k, v in one for j, w in two)


def in_order(parameters: Sequence[Parameter]) -> tuple[Parameter, ...]:
    """Each after those that its condition asks for; less those that wait for each other in a circle."""
    ordered: list[Parameter] = []
    while True:
        waiting = {p.key for p in parameters if p not in ordered}
        ready = [p for p in parameters if p not in ordered and not any(key in waiting for key, _ in p.when)]
        if not ready:
            return tuple(ordered)
        ordered += ready
