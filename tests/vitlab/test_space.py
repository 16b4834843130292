"""What a search chooses from: Hydra's grammar read as it is meant, conditions kept, and every mistake told at once."""

import itertools
from typing import Any

import pytest

from vitlab.space import NotASpace, Parameter, Space, read

SCHEDULES = {"schedule": "choice(warmup_cosine, reciprocal_sqrt)"}
COOLDOWN = {"schedule=reciprocal_sqrt": {"schedule.cooldown_steps": "int(interval(0, 100))"}}


def only(line: str) -> Parameter:
    """The one parameter of a space of one override."""
    space, fixed = read([line], None, None)
    assert fixed == []
    (parameter,) = space.parameters
    return parameter


def told(lines: list[str], params: Any = None, when: Any = None) -> list[str]:
    """The mistakes of a space."""
    with pytest.raises(NotASpace) as refusal:
        read(lines, params, when)
    return refusal.value.problems


# ---------------------------------------------------------------------------------------------------------- grammar


@pytest.mark.parametrize(
    ("line", "ends", "step", "log"),
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
def test_numbers_are_read_with_their_ends_steps_and_scale(
    line: str, ends: tuple[float, float], step: float | None, log: bool
) -> None:
    found = only(line)
    assert (found.ends, found.step, found.log) == (ends, step, log)
    assert [type(end) for end in found.ends] == [type(end) for end in ends]


@pytest.mark.parametrize("line", ["model/size=tiny,small", "model/size=choice(tiny, small)", "+model/size=tiny,small"])
def test_choices_are_spelt_as_they_were_and_keep_their_prefix(line: str) -> None:
    found = only(line)
    assert found.all == ("tiny", "small")
    assert found.key == "model/size"
    assert found.spelt("small") == f"{line.split('=')[0]}=small"


def test_choices_of_lists_and_quoted_text_survive() -> None:
    assert only("a=[1,2],'x, y',null").all == ("[1,2]", "'x, y'", "null")


def test_suggested_numbers_are_trained_with_four_digits_and_stay_within_their_ends() -> None:
    found = only("a=tag(log, interval(0.000123541, 0.0123456))")
    assert found.spelt(0.0030324452303) == "a=0.003032"
    assert found.trained(0.00012354101) == found.low, "not below the lower end"
    assert found.trained(0.01234559) == found.high, "nor above the upper"
    assert only("a=int(interval(1, 999999))").spelt(123456) == "a=123456"


def test_the_command_line_goes_before_the_files() -> None:
    params = {"optimizer.lr": "interval(1e-4, 1e-2)", "seed": 3, "model.dim": "choice(16, 32)"}
    space, fixed = read(["optimizer.lr=1e-3", "model.dim=choice(64,96)"], params, None)
    assert fixed == ["optimizer.lr=1e-3", "seed=3"]
    assert [(p.key, p.all) for p in space.parameters] == [("model.dim", ("64", "96"))]


# ------------------------------------------------------------------------------------------------------- conditions


def test_a_parameter_is_asked_for_only_where_its_condition_holds() -> None:
    space, _ = read([], {**SCHEDULES, "optimizer.lr": "choice(1, 2)"}, COOLDOWN)
    with_it = space.overrides(lambda p: "reciprocal_sqrt" if p.key == "schedule" else p.ends[-1])
    without = space.overrides(lambda p: p.ends[0])
    assert with_it == ["schedule=reciprocal_sqrt", "optimizer.lr=2", "schedule.cooldown_steps=100"]
    assert without == ["schedule=warmup_cosine", "optimizer.lr=1"]


def test_conditions_may_hang_on_each_other_in_any_order_of_writing() -> None:
    when = {"b=2": {"c": "choice(5, 6)"}, "a=1 d=x,y": {"b": "range(1, 4)"}}
    space, _ = read(["a=choice(0,1)", "d=choice(x,y,z)"], None, when)
    assert [p.key for p in space.parameters] == ["a", "d", "b", "c"]
    every = [{p: c.get(p) for p in "adbc"} for c in space.combinations()]
    # without b: a=0 with any d, a=1 with z; with it: two d, three b, of which one has two c
    assert len(every) == 3 + 1 + 2 * (2 + 2)
    assert len({tuple(c.items()) for c in every}) == len(every)
    assert all((c["b"] is not None) == (c["a"] == "1" and c["d"] != "z") for c in every)
    assert all((c["c"] is not None) == (c["b"] == 2) for c in every)


def test_one_setting_may_have_another_range_under_another_condition() -> None:
    when = {
        "optimizer=adamw": {"optimizer.lr": "tag(log, interval(1e-4, 1e-2))"},
        "optimizer=sgd,lion": {"optimizer.lr": "interval(0.1, 1)"},
    }
    space, _ = read([], {"optimizer": "choice(adamw, sgd, lion)"}, when)
    names = ["optimizer", "optimizer.lr (optimizer=adamw)", "optimizer.lr (optimizer=sgd,lion)"]
    assert [p.name for p in space.parameters] == names, "a study keeps them apart"
    assert space.chosen(lambda p: p.ends[-1]) == {"optimizer": "lion", "optimizer.lr": 1.0}


def test_a_value_given_on_the_command_line_decides_a_condition_for_all_trials() -> None:
    for value, keys in (("reciprocal_sqrt", ["schedule.cooldown_steps"]), ("constant", [])):
        space, fixed = read([f"schedule={value}"], SCHEDULES, COOLDOWN)
        assert fixed == [f"schedule={value}"]
        assert list(space.chosen(lambda p: p.ends[0])) == keys


def test_the_corners_hold_every_choice_and_both_ends_of_all_numbers_and_are_possible() -> None:
    space, _ = read(["optimizer.lr=interval(1,2)"], {**SCHEDULES, "model.dim": "choice(16, 32, 64)"}, COOLDOWN)
    corners = list(space.corners())
    seen = set(itertools.chain.from_iterable(corners))
    assert seen == {
        *("optimizer.lr=1.0", "optimizer.lr=2.0", "model.dim=16", "model.dim=32", "model.dim=64"),
        *("schedule=warmup_cosine", "schedule=reciprocal_sqrt"),
        *("schedule.cooldown_steps=0", "schedule.cooldown_steps=100"),
    }
    assert len({tuple(c) for c in corners}) == len(corners) < 10
    assert all(("schedule=reciprocal_sqrt" in c) == any("cooldown" in line for line in c) for c in corners)


# --------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a=interval(3,1)", "a=interval(3,1) is empty: write the lower end first, then the upper"),
        ("a=interval(1,inf)", "is empty"),
        ("a=range(3,3)", "a=range(3,3) is empty: the first number is in it, the last isn't"),
        ("a=tag(log,interval(0,1))", "a=tag(log,interval(0,1)): a logarithmic scale begins above 0"),
        ("a=tag(lgo,interval(1,2))", "there is no tag 'lgo'; did you mean 'log'?"),
        ("a=tag(log,choice(1,2))", "a choice has no scale"),
        ("a=tag(log,range(1,9,2))", "a logarithmic range has steps of 1"),
        ("a=choice(1,2,1)", "has a value twice"),
        ("a=interval(1", "command line: 'a=interval(1' is no override"),
    ],
)
def test_a_range_that_says_nothing_is_told(line: str, words: str) -> None:
    (problem,) = told([line])
    assert words in problem


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ({"schedul=a": {"x": "1,2"}}, "schedul is not searched; did you mean 'schedule'?; add it to the parameters"),
        ({"schedule=reciprocal": {"x": "1,2"}}, "reciprocal is none of schedule's values; did you mean 'reciprocal_s"),
        ({"lr=1": {"x": "1,2"}}, "lr is a range of numbers, and a condition asks for a choice's value"),
        ({"schedule=interval(1,2)": {"x": "1,2"}}, "names no values"),
        ({"schedule": {"x": "1,2"}}, "is no override"),
        ({"schedule=warmup_cosine": "x"}, "has no parameters below it"),
        ({"schedule=warmup_cosine": {"x": "3"}}, "x=3 is one value: nothing to search"),
        ({"schedule=warmup_cosine": {"x": [1, 2]}}, "write it as text: choice(a, b)"),
        ({"schedule=warmup_cosine": {"lr": "1,2"}}, "lr stands twice among the parameters"),
        (
            {"schedule=warmup_cosine": {"x": "1,2"}, "schedule=warmup_cosine,reciprocal_sqrt": {"x": "3,4"}},
            "x stands twice among the parameters, under conditions that can hold at once",
        ),
        ({"x=1": {"y": "1,2"}, "y=1": {"x": "1,2"}}, "each of y, x waits for another of them; break the circle"),
        ("schedule", "has no parameters below it"),
    ],
)
def test_a_condition_that_cant_be_meant_is_told(when: Any, words: str) -> None:
    (problem,) = told([], {**SCHEDULES, "lr": "interval(0,1)"}, when)
    assert words in problem


def test_all_mistakes_are_told_together() -> None:
    found = told(["a=interval(3,1)"], {"b": "tag(log, interval(0, 1))", "c": [1]}, {"s=1": {"d": "1,2"}})
    assert sorted(problem.split("=")[0].split(":")[0] for problem in found) == [
        "a",
        "hydra.sweeper.params.b",
        "hydra.sweeper.params.c",
        "hydra.sweeper.when.s",
    ]
    assert told([], [1, 2]) == ["hydra.sweeper.params=[1, 2] is not a mapping of settings to what they are chosen from"]


def test_a_grid_can_go_through_choices_and_ranges_and_says_what_it_cant() -> None:
    space, _ = read(["a=choice(x,y)", "b=range(1,4)"], None, None)
    assert len(list(space.combinations())) == 6
    assert list(Space().combinations()) == [{}]
    space, _ = read(["a=choice(x,y)", "b=interval(1,4)"], None, None)
    with pytest.raises(NotASpace, match="b has no end of values, which no grid can go through"):
        space.combinations()
