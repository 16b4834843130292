"""What the learning rate is at each step."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from vitlab.jobs.compose import CONF
from vitlab.training.schedules import constant, count_warmup, reciprocal_sqrt, warmup_cosine, warmup_linear

PEAK, STEPS = 0.4, 40


def rates(make: Callable[..., LambdaLR], steps: int = STEPS) -> list[float]:
    """The rate that a real optimizer used in each of its steps, read from how far plain SGD went."""
    weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=PEAK)
    schedule = make(optimizer, total_steps=STEPS)
    used = []
    for _ in range(steps):
        before = weight.item()
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        schedule.step()
        used.append(before - weight.item())
    return used


ALL: dict[str, Callable[..., LambdaLR]] = {
    "warmup_cosine": warmup_cosine,
    "warmup_linear": warmup_linear,
    "reciprocal_sqrt": reciprocal_sqrt,
    "constant": constant,
}


@pytest.mark.parametrize("name", ALL)
def test_warmup_is_a_straight_line_whose_first_step_counts_and_whose_last_is_the_peak(name: str) -> None:
    used = rates(partial(ALL[name], warmup_steps=8))
    assert used[:8] == pytest.approx([PEAK * (step + 1) / 8 for step in range(8)])
    assert max(used) == pytest.approx(PEAK)


@pytest.mark.parametrize("name", ALL)
def test_without_warmup_the_first_step_is_at_the_peak(name: str) -> None:
    assert rates(ALL[name], 1) == pytest.approx([PEAK])


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_cosine_falls_by_half_a_cosine_to_its_floor(floor: float) -> None:
    used = rates(partial(warmup_cosine, warmup_steps=8, final_fraction=floor), STEPS + 3)
    for step in (8, 9, 16, 24, 31, 39):
        angle = math.pi * (step - 8) / 32
        assert used[step] == pytest.approx(PEAK * (floor + (1 - floor) * (1 + math.cos(angle)) / 2)), step
    assert used[24] == pytest.approx(PEAK * (1 + floor) / 2), "half way down in the middle"
    assert used[STEPS:] == pytest.approx([PEAK * floor] * 3), "and stays there"


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_linear_falls_by_equal_steps_to_its_floor(floor: float) -> None:
    used = rates(partial(warmup_linear, warmup_steps=8, final_fraction=floor), STEPS + 1)
    falls = [before - after for before, after in itertools.pairwise(used[8:])]
    assert falls == pytest.approx([PEAK * (1 - floor) / 32] * 32)
    assert used[STEPS] == pytest.approx(PEAK * floor)


def test_reciprocal_sqrt_falls_with_the_root_of_the_steps_after_the_warmup() -> None:
    used = rates(partial(reciprocal_sqrt, warmup_steps=8, timescale=10))
    for step in (8, 13, 18, 38):
        assert used[step] == pytest.approx(PEAK / math.sqrt(1 + (step - 8) / 10)), step
    assert used[18] == pytest.approx(PEAK / math.sqrt(2)), "at the time scale, as conf/ says"


def test_reciprocal_sqrt_cools_down_by_a_straight_line_at_the_end_alone() -> None:
    plain = rates(partial(reciprocal_sqrt, warmup_steps=8, timescale=10))
    cooled = rates(partial(reciprocal_sqrt, warmup_steps=8, timescale=10, cooldown_steps=5))
    assert cooled[:36] == pytest.approx(plain[:36])
    shares = [cooled[step] / plain[step] for step in range(36, STEPS)]
    assert shares == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_constant_stays_at_the_peak() -> None:
    assert rates(partial(constant, warmup_steps=8), STEPS + 5)[8:] == pytest.approx([PEAK] * (STEPS - 3))


@pytest.mark.parametrize("name", ALL)
def test_a_warmup_that_leaves_nothing_is_refused_by_name(name: str) -> None:
    rates(partial(ALL[name], warmup_steps=STEPS - 1), 1)
    with pytest.raises(
        ValueError, match=r"schedule\.warmup_steps=40 leaves .* 40 steps.*warmup_fraction=0.02.*max_epochs"
    ):
        rates(partial(ALL[name], warmup_steps=STEPS), 1)


@pytest.mark.parametrize("name", ALL)
def test_a_warmup_of_a_fraction_follows_the_length_and_never_takes_all_of_it(name: str) -> None:
    assert rates(partial(ALL[name], warmup_fraction=0.2)) == rates(partial(ALL[name], warmup_steps=8))
    assert rates(partial(ALL[name], warmup_fraction=0.2, warmup_steps=5)) == rates(partial(ALL[name], warmup_steps=5))
    assert rates(partial(ALL[name], warmup_fraction=0.99))[STEPS - 1] == pytest.approx(PEAK)
    for total in (1, 2, 3):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
        assert ALL[name](optimizer, total, warmup_fraction=0.9).get_last_lr()[0] > 0, total


def test_a_fraction_is_rounded_to_the_nearest_step() -> None:
    assert [count_warmup(total, None, 0.02) for total in (1, 24, 26, 2520)] == [0, 0, 1, 50]
    assert count_warmup(100, None, 0.29) == 29, "0.29 * 100 is less than 29 in binary"
    assert count_warmup(10, 10, 0.02) == 10, "what was set stays"


def test_a_cooldown_that_leaves_nothing_is_refused_as_well() -> None:
    match = r"cooldown_steps=10 and a warm-up of 30 steps leave .* 40 steps.*at most schedule.cooldown_steps=9"
    with pytest.raises(ValueError, match=match):
        rates(partial(reciprocal_sqrt, warmup_steps=30, cooldown_steps=10), 1)
    rates(partial(reciprocal_sqrt, warmup_steps=30, cooldown_steps=9), 1)


@pytest.mark.parametrize("file", sorted((CONF / "schedule").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_schedule_of_conf_is_tested_here(file: Path) -> None:
    node = OmegaConf.to_container(OmegaConf.load(file))
    made = instantiate(node)
    assert made.func is ALL[file.stem]
    assert rates(partial(made, warmup_steps=4), 4)[3] == pytest.approx(PEAK)


def test_settings_out_of_bounds_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^final_fraction=2.0 must be at least 0 and at most 1$"):
        warmup_cosine(torch.optim.SGD([torch.zeros(1)], lr=1.0), 10, final_fraction=2.0)
