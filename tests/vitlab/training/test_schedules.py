"""What the learning rate is at each step."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from vitlab.jobs.compose import CONF
from vitlab.training.schedules import (
    call_schedule,
    constant,
    count_warmup,
    reciprocal_sqrt,
    timm_cosine,
    warmup_cosine,
    warmup_linear,
)

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
    "warmup_stable_decay": partial(constant, decay_fraction=0.2),
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


@pytest.mark.parametrize("warmup", [0, STEPS - 1])
@pytest.mark.parametrize(
    ("name", "share"), [("warmup_cosine", 0.0), ("warmup_linear", 0.0), ("warmup_stable_decay", 0.0), ("constant", 1.0)]
)
def test_without_a_floor_a_decay_ends_at_0_even_one_of_a_single_step(name: str, share: float, warmup: int) -> None:
    (factor,) = ALL[name](sgd(), STEPS, warmup_steps=warmup).lr_lambdas
    assert factor(STEPS) == pytest.approx(share, abs=1e-12)


def test_reciprocal_sqrt_has_big_vision_s_time_scale_by_default() -> None:
    """utils.create_learning_rate_schedule: after 10,000 steps the rate is 1 / sqrt(2) of the peak."""
    (factor,) = reciprocal_sqrt(sgd(), 10**6, warmup_steps=100).lr_lambdas
    assert factor(100 + 10_000) == pytest.approx(0.5**0.5, rel=1e-9)


def test_constant_stays_at_the_peak() -> None:
    assert rates(partial(constant, warmup_steps=8), STEPS + 5)[8:] == pytest.approx([PEAK] * (STEPS - 3))


@pytest.mark.parametrize("name", ALL)
def test_a_warmup_that_leaves_nothing_is_refused_by_name(name: str) -> None:
    rates(partial(ALL[name], warmup_steps=STEPS - 1), 1)
    with pytest.raises(
        ValueError, match=r"schedule\.warmup_steps=40 leaves .* 40 steps.*warmup_fraction=0.02.*max_epochs"
    ):
        rates(partial(ALL[name], warmup_steps=STEPS), 1)


@pytest.mark.parametrize("name", ["warmup_cosine", "warmup_linear", "reciprocal_sqrt", "constant"])
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
    assert count_warmup(10, 9, 0.02) == 9, "what was set stays"
    assert count_warmup(10, None) == 0, "no setting, no warm-up"


def test_a_cooldown_that_leaves_nothing_is_refused_as_well() -> None:
    match = r"cooldown_steps=10 and a warm-up of 30 steps leave .* 40 steps.*at most schedule.cooldown_steps=9"
    with pytest.raises(ValueError, match=match):
        rates(partial(reciprocal_sqrt, warmup_steps=30, cooldown_steps=10), 1)
    rates(partial(reciprocal_sqrt, warmup_steps=30, cooldown_steps=9), 1)


@pytest.mark.parametrize("file", sorted((CONF / "schedule").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_schedule_of_conf_is_tested_here(file: Path) -> None:
    node = OmegaConf.to_container(OmegaConf.load(file))
    made = instantiate(node)
    if file.stem == "timm_cosine":  # whose peak is never reached: the cosine has begun before the warm-up
        assert made.func is timm_cosine
        return
    assert made.func is (constant if file.stem == "warmup_stable_decay" else ALL[file.stem])
    assert rates(partial(made, warmup_steps=4), 4)[3] == pytest.approx(PEAK)


def test_settings_out_of_bounds_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^final_fraction=2.0 must be at least 0 and at most 1$"):
        warmup_cosine(torch.optim.SGD([torch.zeros(1)], lr=1.0), 10, final_fraction=2.0)


# ------------------------------------------------------------------------------------------- next to other libraries


def rates_of_groups(optimizer: torch.optim.Optimizer, schedule: LambdaLR, steps: int) -> list[list[float]]:
    """The rate of each group in each step."""
    used = []
    for _ in range(steps):
        used.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return used


def sgd(rate: float = PEAK, **group: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], **group}], lr=rate)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("cooldown", [0, 2])
@pytest.mark.parametrize("per_epoch", [True, False])
@pytest.mark.parametrize("warmup", [0, 3, 5])
def test_timm_s_cosine_has_the_rates_of_timm_s_own_program(
    warmup: int, per_epoch: bool, cooldown: int, prefix: bool
) -> None:
    """Stepped as in timm's train.py: after each epoch with the next one's number, after each update with its count."""
    epochs, per = 20, 7
    theirs = sgd()
    reference, all_epochs = create_scheduler_v2(
        theirs,
        sched="cosine",
        num_epochs=epochs - cooldown - warmup * prefix,
        warmup_epochs=warmup,
        warmup_prefix=prefix,
        warmup_lr=1e-3,
        min_lr=1e-2,
        cooldown_epochs=cooldown,
        step_on_epochs=per_epoch,
        updates_per_epoch=per,
    )
    assert all_epochs == epochs
    expected = []
    for epoch in range(epochs):
        for update in range(epoch * per, (epoch + 1) * per):
            expected.append(theirs.param_groups[0]["lr"])
            reference.step_update(update + 1)
        reference.step(epoch + 1)
    ours = sgd()
    schedule = timm_cosine(
        ours,
        epochs * per,
        per,
        warmup_epochs=warmup,
        warmup_lr=1e-3,
        warmup_prefix=prefix,
        min_lr=1e-2,
        cooldown_epochs=cooldown,
        per_epoch=per_epoch,
    )
    used = [rate for (rate,) in rates_of_groups(ours, schedule, epochs * per)]
    assert used == pytest.approx(expected, rel=1e-12)
    assert len(set(used)) > 10


def test_deit_s_program_is_an_epoch_behind() -> None:
    """Its main.py steps the scheduler after epoch e with e, not e + 1 (facebookresearch/deit)."""
    epochs, per, theirs, ours = 12, 3, sgd(1e-3), sgd(1e-3)
    reference = CosineLRScheduler(theirs, t_initial=epochs, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    expected = []
    for epoch in range(epochs):
        expected += [theirs.param_groups[0]["lr"]] * per
        reference.step(epoch)
    schedule = timm_cosine(ours, epochs * per, per, delay_epochs=1)
    used = [rate for (rate,) in rates_of_groups(ours, schedule, epochs * per)]
    assert used == pytest.approx(expected, rel=1e-12)
    assert used[: 2 * per] == pytest.approx([1e-6] * 2 * per)


def test_timm_s_cosine_has_begun_when_the_warmup_ends() -> None:
    ours = sgd(1e-3)
    used = rates_of_groups(ours, timm_cosine(ours, 300, 1, min_lr=0.0), 300)
    assert used[5][0] / 1e-3 == pytest.approx(0.5 * (1 + math.cos(math.pi * 5 / 300)))
    assert 0.9993 < used[5][0] / 1e-3 < 0.9994


@pytest.mark.parametrize("lr_min", [0.0, 1e-3])
def test_torchvision_s_sequence_of_a_linear_and_a_cosine_schedule_per_epoch(lr_min: float) -> None:
    """references/classification/train.py: LinearLR, then CosineAnnealingLR, stepped after each epoch."""
    epochs, warmup, per, theirs, ours = 30, 6, 5, sgd(), sgd()
    linear = torch.optim.lr_scheduler.LinearLR(theirs, start_factor=0.033, total_iters=warmup)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=epochs - warmup, eta_min=lr_min)
    reference = torch.optim.lr_scheduler.SequentialLR(theirs, [linear, cosine], milestones=[warmup])
    expected = []
    for _ in range(epochs):
        expected += [theirs.param_groups[0]["lr"]] * per
        theirs.step()
        reference.step()
    schedule = warmup_cosine(
        ours,
        epochs * per,
        per,
        warmup_epochs=warmup,
        warmup_start_fraction=0.033,
        final_lr=lr_min,
        per_epoch=True,
    )
    used = [rate for (rate,) in rates_of_groups(ours, schedule, epochs * per)]
    assert used == pytest.approx(expected, rel=1e-9)
    assert used[0] == pytest.approx(0.033 * PEAK)


@pytest.mark.parametrize("per_epoch", [False, True])
def test_mae_s_rates_scale_with_layer_decay_at_both_ends(per_epoch: bool) -> None:
    """util/lr_sched.py: from 0 in a straight line, half a cosine to min_lr, all times the layer's factor."""
    epochs, warmup, per, peak, low = 10, 2, 4, 1e-3, 1e-6
    ours = torch.optim.SGD(
        [{"params": [nn.Parameter(torch.zeros(1))], "lr": peak * f, "lr_factor": f} for f in (0.25, 1.0)], lr=peak
    )
    schedule = warmup_cosine(
        ours, epochs * per, per, warmup_epochs=warmup, warmup_start_fraction=0.0, final_lr=low, per_epoch=per_epoch
    )
    for step, used in enumerate(rates_of_groups(ours, schedule, epochs * per)):
        epoch = step // per if per_epoch else step / per
        rate = peak * epoch / warmup
        if epoch >= warmup:
            rate = low + (peak - low) * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
        assert used == pytest.approx([0.25 * rate, rate], rel=1e-12), step


@pytest.mark.parametrize(("shape", "power"), [("sqrt", 0.5), ("linear", 1.0)])
def test_warmup_stable_decay_is_constant_until_its_last_steps(shape: str, power: float) -> None:
    options: dict[str, Any] = {"decay_shape": shape, "final_fraction": 0.1}
    make = partial(constant, warmup_steps=8, decay_fraction=0.25, **options)
    used = rates(make, STEPS + 2)
    assert used[7:31] == pytest.approx([PEAK] * 24), "the decay's first step is at the peak"
    assert used[30:40] == pytest.approx([PEAK * (1 - 0.9 * (k / 10) ** power) for k in range(10)])
    assert used[40:] == pytest.approx([0.1 * PEAK] * 2)


def test_a_warmup_in_epochs_comes_after_steps_and_before_a_fraction() -> None:
    assert count_warmup(100, None, 0.5, 1.5, steps_per_epoch=10) == 15
    assert count_warmup(100, 7, 0.5, 1.5, steps_per_epoch=10) == 7
    with pytest.raises(ValueError, match=r"schedule\.warmup_epochs=1 needs a data module that counts steps_per_epoch"):
        warmup_cosine(sgd(), 10, warmup_epochs=1)
    with pytest.raises(ValueError, match=r"schedule\.per_epoch needs a data module"):
        warmup_cosine(sgd(), 10, per_epoch=True)
    for make in (warmup_cosine, timm_cosine):
        with pytest.raises(ValueError, match=r"schedule\.warmup_epochs=5 leaves nothing of the 20 steps.*max_epochs"):
            make(sgd(), 20, 4, warmup_epochs=5)
    with pytest.raises(ValueError, match=r"cooldown_steps=4 and a warm-up of 16 steps leave nothing of the 20"):
        timm_cosine(sgd(), 20, 4, warmup_epochs=4, cooldown_epochs=1)


def test_a_schedule_gets_the_steps_of_an_epoch_if_it_takes_them() -> None:
    def own(optimizer: torch.optim.Optimizer, total_steps: int, *, times: int = 1) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: times / total_steps)

    assert call_schedule(partial(own, times=2), sgd(), total_steps=4, steps_per_epoch=2).get_last_lr() == [PEAK / 2]
    with_epochs = call_schedule(partial(warmup_cosine, warmup_epochs=2), sgd(), total_steps=40, steps_per_epoch=4)
    assert with_epochs.get_last_lr() == pytest.approx([PEAK / 8])
