"""Bounds of settings, each stated once, in a signature; the check before the start and the constructor read it there.

def __init__(self, *, rate: Annotated[float, Ge(0), Lt(1), "0 is off"] = 0.0)       or one of the names below
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Annotated, Any, ParamSpec, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from vitlab.config.annotations import bound_problem

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
    names, annotations = list(signature(function).parameters), function.__annotations__

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        given: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
        pairs = [(name, value, bound_problem(value, annotations.get(name))) for name, value in given.items()]
        if wrong := [f"{name}={value} {problem}" for name, value, problem in pairs if problem]:
            raise ValueError("\n".join(wrong))
        return function(*args, **kwargs)

    return wrapper
