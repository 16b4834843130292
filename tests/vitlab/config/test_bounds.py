"""What a signature says of its arguments' bounds, a call keeps."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ForwardRef, Literal, Optional, TypeVar, Union

import pytest
from annotated_types import Ge, Gt, Le, Lt

from vitlab.config import bounds
from vitlab.config.bounds import Ascending, PositiveFloat, PositiveInt, Rate, Seed, check_bounds
from vitlab.config.schema import Node


class Kettle:
    @check_bounds
    def __init__(self, name: "NotThere", *, litres: PositiveFloat, cups: PositiveInt | None = None) -> None:  # type: ignore[name-defined]  # noqa: F821
        self.litres = litres


@check_bounds
def boil(seconds: PositiveInt, rate: Rate = 0.5, spread: Annotated[tuple[float, float], Ascending()] = (0, 1)) -> int:
    """Boils."""
    return seconds


def test_a_call_within_bounds_is_made_as_it_is() -> None:
    assert boil(3) == boil(seconds=3, rate=0) == 3
    assert Kettle("x", litres=1.5).litres == 1.5
    assert boil.__doc__ == "Boils."


def test_all_arguments_out_of_bounds_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"^seconds=0 must be at least 1\nrate=1.0 must be at least 0 and below 1$"):
        boil(0, 1.0)
    with pytest.raises(ValueError, match=r"^litres=nan must be above 0\ncups=0 must be at least 1$"):
        Kettle("x", litres=float("nan"), cups=0)
    with pytest.raises(ValueError, match=r"^spread=\(2, 1\) must be \[low, high\] with low <= high$"):
        boil(1, spread=(2, 1))


def test_a_wrong_call_is_refused_as_ever() -> None:
    with pytest.raises(TypeError, match="seconds"):
        boil()  # type: ignore[call-arg]


def test_a_seed_is_what_numpy_takes() -> None:
    @check_bounds
    def sow(seed: Seed) -> int:
        return seed

    assert sow(2**32 - 1) == 4294967295
    with pytest.raises(ValueError, match="seed=4294967296 must be at least 0 and below 4294967296"):
        sow(2**32)


T = TypeVar("T")


class Wheel:
    """What no plain value can be."""


FITTING: list[tuple[Any, Any]] = [
    (3, int),
    (3.5, float),
    (3, float),  # YAML's 3 is Python's 3.0
    (True, bool),
    ("a", str),
    (b"a", bytes),
    (None, None),
    (None, type(None)),
    (None, int | None),
    (3, Optional[int]),  # noqa: UP045
    ("a", Union[int, str]),  # noqa: UP007
    ("cls", Literal["cls", "avg"]),
    (16, Literal[16, 32]),
    ([1, 2], tuple[int, int]),
    ([1, 0.5], tuple[float, float]),
    ((1, 2), tuple[int, int]),
    ([1, 2, 3], tuple[int, ...]),
    ([], tuple[int, ...]),
    ([1, "a"], tuple),
    (["a", "b"], list[str]),
    ([], list[str]),
    ([1, "a"], list),
    ([1, 2], Sequence[int]),
    ([1, 2], Iterable[int]),
    ([[1, 2], [3, 4]], list[tuple[int, int]]),
    ({"a": {"_target_": "x"}, "b": None}, dict[str, Node | None]),
    ({"a": 1}, Mapping[str, int]),
    ({"a": 1}, dict),
    ("a/b", Path),
    (3, Annotated[int, "metres"]),
    ("anything", Any),
    ("anything", object),
    ("anything", inspect.Parameter.empty),
    ("anything", T),
    ("anything", "a forward reference that can't be evaluated"),
    ([1, 2], int | tuple[int, int]),
    (7, int | tuple[int, int]),
]
NOT_FITTING: list[tuple[Any, Any]] = [
    (3.0, int),
    (True, int),
    ("3", int),
    (None, int),
    (True, float),
    ("1e-3", float),
    (None, float),
    (0, bool),
    ("true", bool),
    (3, str),
    (True, str),
    (None, str),
    ("null", None),
    (0, None),
    ("max", Literal["cls", "avg"]),
    (True, Literal[1, 2]),
    ("16", Literal[16, 32]),
    ("a", Optional[int]),  # noqa: UP045
    (1.5, Union[int, str]),  # noqa: UP007
    ([1], tuple[int, int]),
    ([1, 2, 3], tuple[int, int]),
    ([1, 2.5], tuple[int, int]),
    (1, tuple[int, int]),
    ("ab", tuple[str, str]),
    ([1, "a"], tuple[int, ...]),
    (["a", 1], list[str]),
    ("ab", list[str]),
    ("ab", Sequence[str]),  # a string is no list of its letters
    ("ab", Iterable[str]),
    ({"a": 1}, list[str]),
    ([1], dict[str, int]),
    ({"a": 1}, dict[str, Node | None]),
    ({"a": "1"}, Mapping[str, int]),
    (3, Path),
    ("a", Annotated[int, "metres"]),
    ("round", Wheel),
    ({"spokes": 3}, Wheel),
    ("print", Callable[..., None]),
]


def spelt(case: Any) -> str:
    return str(case).replace("typing.", "")


@pytest.mark.parametrize(("value", "annotation"), FITTING, ids=spelt)
def test_a_value_fits_what_may_hold_it(value: Any, annotation: Any) -> None:
    assert bounds.fits(value, annotation)


@pytest.mark.parametrize(("value", "annotation"), NOT_FITTING, ids=spelt)
def test_a_value_does_not_fit_what_may_not_hold_it(value: Any, annotation: Any) -> None:
    assert not bounds.fits(value, annotation)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "an int"),
        (float, "a number"),
        (bool, "true or false"),
        (str, "a string"),
        (None, "null"),
        (int | None, "an int or null"),
        (Literal["cls", "avg"], "one of 'cls', 'avg'"),
        (int | tuple[int, int], "an int or a list of 2 (an int, an int)"),
        (tuple[float, float], "a list of 2 (a number, a number)"),
        (tuple[float, ...], "a list of a number"),
        (list[str], "a list of a string"),
        (Sequence[int], "a list of an int"),
        (dict[str, Node | None], "a mapping"),
        (dict, "a mapping"),
        (Wheel, "Wheel"),
        (Wheel | None, "Wheel or null"),
    ],
    ids=spelt,
)
def test_an_annotation_is_described_in_words(annotation: Any, words: str) -> None:
    assert bounds.format_type(annotation) == words


# ------------------------------------------------------------------------------------------------------------- bounds

Positive = Annotated[int, Ge(1)]


@pytest.mark.parametrize(
    ("value", "annotation", "problem"),
    [
        (1, Positive, None),
        (0, Positive, "must be at least 1"),
        (0, Positive | None, "must be at least 1"),
        (None, Positive | None, None),
        (1.0, Annotated[float, Ge(0), Lt(1), "a share"], "must be at least 0 and below 1 (a share)"),
        (0, Annotated[float, Gt(0), Le(1)], "must be above 0 and at most 1"),
        (float("nan"), Annotated[float, Gt(0)], "must be above 0"),
        ([2, 0], list[Positive], "must be at least 1"),
        ([2, 0], tuple[Positive, int], None),
        ((2, 0), tuple[Positive, ...], "must be at least 1"),
        (0, int | tuple[Positive, Positive], None),
        ([0, 3], int | tuple[Positive, Positive], "must be at least 1"),
        (0, Annotated[Positive, "twice"], "must be at least 1 (twice)"),
        (0, ForwardRef("vitlab.config.bounds.PositiveInt"), "must be at least 1"),
        ("c", Literal["a", "b"], "is not one of 'a', 'b'"),
        (3, int, None),
    ],
    ids=spelt,
)
def test_a_bound_that_a_value_breaks_is_told_with_all_of_its_bounds(
    value: Any, annotation: Any, problem: str | None
) -> None:
    assert bounds.bound_problem(value, annotation) == problem


def test_a_name_that_was_read_from_source_is_what_it_stands_for() -> None:
    name = ForwardRef("lightning.fabric.utilities.types._PATH")
    assert bounds.fits("a/b", name)
    assert not bounds.fits(3, name)
    assert bounds.format_type(name) == "a string or Path"
    assert bounds.choices(ForwardRef("vitlab.evaluation.features.Kind")) == ["pooled", "cls", "mean", "both"]
