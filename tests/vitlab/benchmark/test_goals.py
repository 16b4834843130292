"""A goal compares what it names, with the rival that it names or the best one."""

import pytest

from vitlab.benchmark.case import Case
from vitlab.benchmark.goals import Goal, outcomes
from vitlab.diagnostics.timing import Measurement


def measurement(name: str, seconds: float, *, peer: bool = True, items: float = 1.0, **figures: float) -> Measurement:
    return Measurement(name=name, seconds=(seconds,), items=items, peer=peer, figures=figures)


CASE = Case(
    part="networks",
    name="b16 training",
    measured=[
        measurement("vitlab", 4.0, items=2, MB=12),
        measurement("timm", 4.0, MB=10),
        measurement("other", 1.0),
        measurement("limit", 0.1, peer=False, MB=1),
    ],
)


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (Goal("networks", 1.0), (False, "seconds 2.00 x other (goal: at most 1, missed)")),
        (Goal("networks", 0.5, "timm"), (True, "seconds 0.50 x timm (goal: at most 0.5)")),
        (Goal("networks", 1.1, figure="MB"), (False, "MB 1.20 x timm (goal: at most 1.1, missed)")),
        (Goal("networks", 1.2, figure="MB", case="b16"), (True, "MB 1.20 x timm (goal: at most 1.2)")),
        (Goal("networks", 1.0, "absent"), None),
        (Goal("networks", 1.0, figure="CPU"), None),
        (Goal("networks", 1.0, case="s16"), None),
        (Goal("training", 1.0), None),
    ],
)
def test_the_outcome_says_what_was_reached_of_which_rival(goal: Goal, expected: tuple[bool, str] | None) -> None:
    assert goal.outcome(CASE) == expected


def test_a_case_without_vitlab_has_no_goals() -> None:
    assert (
        outcomes(Case(part="networks", name="", measured=[measurement("timm", 1.0), measurement("other", 2.0)])) == []
    )
