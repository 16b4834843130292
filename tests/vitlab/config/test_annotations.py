"""A value fits an annotation or not, and its bounds or not; messages say what is wanted."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ForwardRef, Literal, Optional, TypeVar, Union

import pytest
from annotated_types import Ge, Gt, Le, Lt

from vitlab.config import annotations
from vitlab.config.schema import Node

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
    assert annotations.fits(value, annotation)


@pytest.mark.parametrize(("value", "annotation"), NOT_FITTING, ids=spelt)
def test_a_value_does_not_fit_what_may_not_hold_it(value: Any, annotation: Any) -> None:
    assert not annotations.fits(value, annotation)


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
    assert annotations.format_type(annotation) == words


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
    assert annotations.bound_problem(value, annotation) == problem


def test_a_name_that_was_read_from_source_is_what_it_stands_for() -> None:
    name = ForwardRef("lightning.fabric.utilities.types._PATH")
    assert annotations.fits("a/b", name)
    assert not annotations.fits(3, name)
    assert annotations.format_type(name) == "a string or Path"
    assert annotations.choices(ForwardRef("vitlab.evaluation.features.Kind")) == ["pooled", "cls", "mean", "both"]
