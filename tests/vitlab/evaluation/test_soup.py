"""Greedy and uniform soups: means of weights by hand, and which runs are kept."""

from collections.abc import Callable

import pytest
import torch

from vitlab.evaluation.soup import State, cook, mean_state


def state(value: float) -> State:
    return {"w": torch.full((2,), value), "count": torch.tensor(int(value))}


def score_of(target: float) -> Callable[[State], float]:
    return lambda tried: -abs(float(tried["w"][0]) - target)


def test_the_mean_is_of_floats_alone() -> None:
    mean = mean_state([state(1.0), state(2.0), state(6.0)])
    assert mean["w"].tolist() == [3.0, 3.0]
    assert mean["count"] == 1
    half = {"w": torch.tensor([60000.0], dtype=torch.float16)}
    assert mean_state([half] * 3)["w"].item() == 60000.0, "the sum is above float16's largest number"


@pytest.mark.parametrize(
    ("values", "target", "members", "weight"),
    [
        ([1.0, 4.0, 10.0], 3.0, [1, 0], 2.5),  # 4 is best; with 1: 2.5, better; with 10: 5, worse
        ([1.0, 4.0, 10.0], 100.0, [2], 10.0),
        ([2.0, 2.0, 2.0], 2.0, [0, 1, 2], 2.0),  # equal scores are kept
    ],
)
def test_greedy_keeps_what_does_not_get_worse(
    values: list[float], target: float, members: list[int], weight: float
) -> None:
    soup = cook([state(value) for value in values], "greedy", score_of(target))
    assert soup.members == members
    assert soup.state["w"].tolist() == [weight, weight]
    assert soup.score == -abs(weight - target)


def test_uniform_keeps_all() -> None:
    soup = cook([state(1.0), state(4.0), state(10.0)], "uniform", score_of(0.0))
    assert (soup.members, soup.score) == ([0, 1, 2], -5.0)
