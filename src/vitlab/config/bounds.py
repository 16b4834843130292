"""Types and bounds of settings, each stated once, in a signature; checks and constructors read it there.

def __init__(self, *, rate: Annotated[float, Ge(0), Lt(1), "0 is off"] = 0.0)       or one of the names below
"""

import inspect
import operator
import types
import typing
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ForwardRef, Literal, ParamSpec, TypeVar, Union

from annotated_types import Ge, Gt, Le, Lt

from vitlab.config import signatures

NonNegativeInt = Annotated[int, Ge(0)]
PositiveInt = Annotated[int, Ge(1)]
Seed = Annotated[int, Ge(0), Lt(4294967296)]  # 2**32, as NumPy takes them
NonNegativeFloat = Annotated[float, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
Probability = Annotated[float, Ge(0), Le(1)]
Rate = Annotated[float, Ge(0), Lt(1)]
Fraction = Annotated[float, Gt(0), Lt(1)]


class Ascending:
    """A pair of numbers in ascending order."""

    words = "[low, high] with low <= high"

    @staticmethod
    def holds(pair: tuple[float, float]) -> bool:
        return len(pair) == 2 and pair[0] <= pair[1]


P = ParamSpec("P")
R = TypeVar("R")


def check_bounds(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function, or `__init__`, to raise `ValueError` with a line for each argument out of bounds."""
    names, annotations = list(inspect.signature(function).parameters), function.__annotations__

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        given: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
        pairs = [(name, value, bound_problem(value, annotations.get(name))) for name, value in given.items()]
        if wrong := [f"{name}={value} {problem}" for name, value, problem in pairs if problem]:
            raise ValueError("\n".join(wrong))
        return function(*args, **kwargs)

    return wrapper


LIMITS: dict[type, tuple[str, str, Callable[[Any, Any], bool]]] = {  # attribute, words, rule
    Ge: ("ge", "at least", operator.ge),
    Gt: ("gt", "above", operator.gt),
    Le: ("le", "at most", operator.le),
    Lt: ("lt", "below", operator.lt),
}


def resolve_annotation(annotation: Any) -> Any:
    """An annotation, or the value of one that is a name in source."""
    return signatures.resolve_name(annotation.__forward_arg__) if isinstance(annotation, ForwardRef) else annotation


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain YAML value has the type of an annotation.

    Stricter than Python (a bool is no int, "3" is no number), except that an int may be a float and a list a tuple.
    """
    annotation = resolve_annotation(annotation)
    if annotation in (Any, inspect.Parameter.empty, object) or isinstance(annotation, TypeVar | str):
        return True
    if annotation in (None, type(None)):
        return value is None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(fits(value, choice) for choice in arguments)
    if origin is Annotated:
        return fits(value, arguments[0])
    kind = origin or annotation
    if not inspect.isclass(kind):
        return True
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, bool, str, bytes):
        return type(value) is kind
    if issubclass(kind, tuple):
        if not isinstance(value, list | tuple):
            return False
        if not arguments or arguments[-1] is Ellipsis:
            return all(fits(item, arguments[0]) for item in value) if arguments else True
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if isinstance(value, list | tuple):
        inner = arguments[0] if arguments else Any
        return issubclass(list, kind) and all(fits(item, inner) for item in value)
    if isinstance(value, dict):
        inner = arguments[1] if len(arguments) == 2 else Any
        return issubclass(dict, kind) and all(fits(item, inner) for item in value.values())
    if issubclass(kind, Path):
        return isinstance(value, str)
    # an object of any other class is built from a node with a `_target_`; a string is no list of letters
    return isinstance(value, kind) and not isinstance(value, str)


def bound_problem(value: Any, annotation: Any) -> str | None:
    """The bound that a value of the right type violates: `must be at least 0 and below 1 (0 is off)`."""
    annotation = resolve_annotation(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return next((bound_problem(value, choice) for choice in arguments if fits(value, choice)), None)
    if origin is Annotated:
        rules = [rule for part in arguments[1:] if (rule := _rule(part))]
        if all(holds(value) for _, holds in rules):
            return bound_problem(value, arguments[0])
        return f"must be {_bounds(annotation)}"
    if origin is Literal and value not in arguments:  # of a constructor that was called from Python
        return f"is not {format_type(annotation)}"
    if isinstance(value, list | tuple) and arguments:
        each = arguments if len(arguments) == len(value) and Ellipsis not in arguments else arguments[:1] * len(value)
        return next((problem for pair in zip(value, each, strict=True) if (problem := bound_problem(*pair))), None)
    return None


def _rule(part: Any) -> tuple[str, Callable[[Any], bool]] | None:
    """A bound in words and as a test; None for other parts of `Annotated`."""
    if type(part) in LIMITS:
        attribute, words, holds = LIMITS[type(part)]
        limit = getattr(part, attribute)
        return f"{words} {limit}", lambda value: holds(value, limit)
    return (part.words, part.holds) if hasattr(part, "holds") else None


def _bounds(annotation: Any) -> str:
    """The bounds and notes of an `Annotated` in words: `at least 0 and below 1 (0 is off)`."""
    parts = typing.get_args(annotation)[1:]
    words = " and ".join(rule[0] for part in parts if (rule := _rule(part)))
    return words + "".join(f" ({part})" for part in parts if isinstance(part, str))


def choices(annotation: Any) -> list[str]:
    """The strings that a (union of) Literal allows."""
    annotation = resolve_annotation(annotation)
    if typing.get_origin(annotation) is Literal:
        return [c for c in typing.get_args(annotation) if isinstance(c, str)]
    return [c for inner in typing.get_args(annotation) for c in choices(inner)]


def format_type(annotation: Any, *, bounds: bool = False) -> str:
    """An annotation in words: `one of 'cls', 'avg'`, `an int or null`, and with its bounds: `an int, at least 1`."""
    annotation = resolve_annotation(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        limits = _bounds(annotation) if bounds else ""
        join = " of " if limits.startswith("at ") else " " if limits.startswith(("above", "below")) else ", "
        return format_type(arguments[0], bounds=bounds) + (join + limits if limits else "")
    inner = [format_type(a, bounds=bounds) for a in arguments if a is not Ellipsis] if origin is not Literal else []
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(inner)
    if annotation in (None, type(None)):
        return "null"
    if inspect.isclass(origin) and issubclass(origin, tuple) and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(inner)} ({', '.join(inner)})"
    if inspect.isclass(origin) and issubclass(origin, Sequence) and arguments:
        return f"a list of {inner[0]}"
    if annotation is dict or origin is dict:
        return "a mapping"
    words = {int: "an int", float: "a number", bool: "true or false", str: "a string"}
    is_known = isinstance(annotation, type) and annotation in words
    return words[annotation] if is_known else getattr(annotation, "__name__", str(annotation))
