"""The search space: ranges in Hydra's grammar, the points at their bounds, and all mistakes in one error."""

from typing import Any

import pytest

from vitlab.sweeps.search.space import InvalidSearchSpace, Parameter, boundary_points, read_space


def only(line: str) -> Parameter:
    """The one parameter of a space of one override."""
    (parameter,), shared = read_space([line], None)
    assert shared == []
    return parameter


def mistakes(lines: list[str], params: Any = None) -> list[str]:
    with pytest.raises(InvalidSearchSpace) as refusal:
        read_space(lines, params)
    return refusal.value.problems


# ---------------------------------------------------------------------------------------------------------- grammar


@pytest.mark.parametrize(
    ("line", "bounds", "step", "log"),
    [
        ("a=interval(1,10)", (1.0, 10.0), None, False),
        ("a=tag(log, interval(1e-4, 1e-2))", (1e-4, 1e-2), None, True),
        ("a=int(interval(1, 10))", (1, 10), 1, False),
        ("a=tag(log, int(interval(1, 512)))", (1, 512), 1, True),
        ("a=range(1,5)", (1, 4), 1, False),
        ("a=range(32, 129, 32)", (32, 128), 32, False),
        ("a=range(10, 0, -3)", (1, 10), 3, False),
        ("a=range(0, 1, 0.25)", (0.0, 0.75), 0.25, False),
    ],
)
def test_numbers_have_their_bounds_step_and_scale(
    line: str, bounds: tuple[float, float], step: float | None, log: bool
) -> None:
    found = only(line)
    assert (found.bounds, found.step, found.log) == (bounds, step, log)
    assert [type(bound) for bound in found.bounds] == [type(bound) for bound in bounds]


@pytest.mark.parametrize("line", ["model/size=tiny,small", "model/size=choice(tiny, small)", "+model/size=tiny,small"])
def test_choices_keep_their_spelling_and_their_prefix(line: str) -> None:
    found = only(line)
    assert found.values == ("tiny", "small")
    assert found.key == "model/size"
    assert found.as_override("small") == f"{line.split('=')[0]}=small"


def test_choices_of_lists_and_quoted_text_survive() -> None:
    assert only("a=[1,2],'x, y',null").values == ("[1,2]", "'x, y'", "null")


def test_continuous_numbers_are_rounded_to_four_digits_within_the_bounds() -> None:
    found = only("a=tag(log, interval(0.000123541, 0.0123456))")
    assert found.as_override(0.0030324452303) == "a=0.003032"
    assert found.as_override(0.00012354101) == "a=0.000123541", "not below the lower bound"
    assert found.as_override(0.01234559) == "a=0.0123456", "nor above the upper"
    assert only("a=int(interval(1, 999999))").as_override(123456) == "a=123456"


def test_the_command_line_takes_precedence_over_the_files() -> None:
    params = {"optimizer.lr": "interval(1e-4, 1e-2)", "seed": 3, "model.dim": "choice(16, 32)"}
    parameters, shared = read_space(["optimizer.lr=1e-3", "model.dim=choice(64,96)"], params)
    assert shared == ["optimizer.lr=1e-3", "seed=3"]
    assert [(p.key, p.values) for p in parameters] == [("model.dim", ("64", "96"))]


def test_boundary_points_cover_every_choice_and_both_bounds_of_all_numbers() -> None:
    lines = ["optimizer.lr=interval(1,2)", "model.dim=choice(16,32,64)", "model.depth=range(1,4)"]
    parameters, _ = read_space(lines, None)
    assert boundary_points(parameters) == [
        ["optimizer.lr=1.0", "model.dim=16", "model.depth=1"],
        ["optimizer.lr=2.0", "model.dim=16", "model.depth=1"],
        ["optimizer.lr=1.0", "model.dim=32", "model.depth=1"],
        ["optimizer.lr=1.0", "model.dim=64", "model.depth=1"],
        ["optimizer.lr=1.0", "model.dim=16", "model.depth=3"],
    ]
    assert len(boundary_points(parameters, known=["model.dim"])) == 3
    assert boundary_points([]) == [[]]


# --------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a=interval(3,1)", "a=interval(3,1) is empty or infinite: write the lower bound first, then the upper"),
        ("a=interval(1,inf)", "is empty or infinite"),
        ("a=range(3,3)", "a=range(3,3) is empty: a range includes its first number, and not its last"),
        ("a=tag(log,interval(0,1))", "a=tag(log,interval(0,1)): a logarithmic scale begins above 0"),
        ("a=tag(lgo,interval(1,2))", "there is no tag 'lgo'; did you mean 'log'?"),
        ("a=tag(log,choice(1,2))", "a choice has no scale"),
        ("a=tag(log,range(1,9,2))", "a logarithmic range has steps of 1"),
        ("a=choice(1,2,1)", "has a value twice"),
        ("a=interval(1", "'a=interval(1' is not an override"),
    ],
)
def test_an_empty_or_contradictory_range_is_refused(line: str, words: str) -> None:
    (problem,) = mistakes([line])
    assert words in problem


def test_all_mistakes_are_reported_together() -> None:
    assert mistakes(["a=interval(3,1)"], {"b": "tag(log, interval(0, 1))", "c": [1], "d": "choice(1"}) == [
        "hydra.sweeper.params.c=[1] is not a range; write it as text: choice(a, b)",
        "'d=choice(1' is not an override (no viable alternative at input 'choice(1')",
        "b=tag(log, interval(0, 1)): a logarithmic scale begins above 0",
        "a=interval(3,1) is empty or infinite: write the lower bound first, then the upper",
    ]
    assert mistakes([], [1, 2]) == ["hydra.sweeper.params=[1, 2] is not a mapping of settings to ranges"]
