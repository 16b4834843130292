"""Learning rates as functions of the optimizer step. torch is imported late: preflight needs none."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from vitlab.config.bounds import NonNegativeInt, PositiveInt, Probability, Rate, check_bounds

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

ScheduleFactory = Callable[..., "LambdaLR"]


def build_scheduler(
    optimizer: "Optimizer", warmup_steps: int, decay: Callable[[int], float] = lambda step: 1.0
) -> "LambdaLR":
    """Multiply each rate by `decay(step)` and a linear warm-up to 1, whose first step is not 0."""
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, warmup_steps)) * decay(step))


def decay_progress(step: int, total_steps: int, warmup_steps: int) -> float:
    """The fraction of the steps after the warm-up that are done, in [0, 1]."""
    return min(1.0, max(0, step - warmup_steps) / max(1, total_steps - warmup_steps))


def check_steps(total_steps: int, warmup_steps: int, cooldown_steps: int = 0) -> None:
    """Raise `ValueError` if warm-up and cool-down leave no step between them."""
    if warmup_steps + cooldown_steps < total_steps:
        return
    if warmup_steps < total_steps:
        problem = f"schedule.cooldown_steps={cooldown_steps} and a warm-up of {warmup_steps} steps leave"
        remedy = f"at most schedule.cooldown_steps={total_steps - warmup_steps - 1}"
    else:
        problem = f"schedule.warmup_steps={warmup_steps} leaves"
        remedy = "schedule.warmup_steps=null with schedule.warmup_fraction=0.02"
    problem += f" nothing of the {total_steps} steps of training"
    raise ValueError(f"{problem}; use {remedy}, or raise trainer.max_epochs or trainer.max_steps")


def count_warmup(total_steps: int, steps: int | None, fraction: float) -> int:
    """The steps of the warm-up: `steps`, or if that is None, `fraction` of all steps, but never all of them."""
    return min(round(fraction * total_steps), total_steps - 1) if steps is None else steps


@check_bounds
def warmup_cosine(
    optimizer: "Optimizer",
    total_steps: int,
    *,
    warmup_steps: NonNegativeInt | None = None,
    warmup_fraction: Rate = 0.0,
    final_fraction: Probability = 0.0,
) -> "LambdaLR":
    """Linear warm-up, then half a cosine down to `final_fraction` of the peak (SGDR, arXiv 1608.03983).

    Args:
        optimizer: Its rate is the peak.
        total_steps: Optimizer steps of the training.
        warmup_steps: Optimizer steps of the linear warm-up; null: `warmup_fraction` of all steps.
        warmup_fraction: Fraction of all steps that is warm-up, where `warmup_steps` is null.
        final_fraction: Rate at the end, as a fraction of the peak.
    """
    warmup = count_warmup(total_steps, warmup_steps, warmup_fraction)
    check_steps(total_steps, warmup)

    def decay(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * decay_progress(step, total_steps, warmup)))
        return final_fraction + (1 - final_fraction) * cosine

    return build_scheduler(optimizer, warmup, decay)


@check_bounds
def warmup_linear(
    optimizer: "Optimizer",
    total_steps: int,
    *,
    warmup_steps: NonNegativeInt | None = None,
    warmup_fraction: Rate = 0.0,
    final_fraction: Probability = 0.0,
) -> "LambdaLR":
    """Linear warm-up, then a straight line down to `final_fraction` of the peak.

    Args:
        optimizer: Its rate is the peak.
        total_steps: Optimizer steps of the training.
        warmup_steps: Optimizer steps of the linear warm-up; null: `warmup_fraction` of all steps.
        warmup_fraction: Fraction of all steps that is warm-up, where `warmup_steps` is null.
        final_fraction: Rate at the end, as a fraction of the peak.
    """
    warmup = count_warmup(total_steps, warmup_steps, warmup_fraction)
    check_steps(total_steps, warmup)

    def decay(step: int) -> float:
        return final_fraction + (1 - final_fraction) * (1 - decay_progress(step, total_steps, warmup))

    return build_scheduler(optimizer, warmup, decay)


@check_bounds
def reciprocal_sqrt(
    optimizer: "Optimizer",
    total_steps: int,
    *,
    warmup_steps: NonNegativeInt | None = None,
    warmup_fraction: Rate = 0.0,
    timescale: PositiveInt = 10_000,
    cooldown_steps: NonNegativeInt = 0,
) -> "LambdaLR":
    """Linear warm-up, then 1 / sqrt(1 + steps after it / timescale), then a straight line to 0.

    Training can be stopped or extended at any step before the cool-down ("Scaling Vision Transformers",
    arXiv 2106.04560, section 3.5).

    Args:
        optimizer: Its rate is the peak.
        total_steps: Optimizer steps of the training.
        warmup_steps: Optimizer steps of the linear warm-up; null: `warmup_fraction` of all steps.
        warmup_fraction: Fraction of all steps that is warm-up, where `warmup_steps` is null.
        timescale: Steps after the warm-up at which the rate is 1 / sqrt(2) of the peak.
        cooldown_steps: Steps of the straight line to 0 at the end.
    """
    warmup = count_warmup(total_steps, warmup_steps, warmup_fraction)
    check_steps(total_steps, warmup, cooldown_steps)

    def decay(step: int) -> float:
        after = max(0, step - warmup)
        cooldown = min(1.0, (total_steps - step) / cooldown_steps) if cooldown_steps else 1.0
        return math.sqrt(timescale / (timescale + after)) * cooldown

    return build_scheduler(optimizer, warmup, decay)


@check_bounds
def constant(
    optimizer: "Optimizer",
    total_steps: int,
    *,
    warmup_steps: NonNegativeInt | None = None,
    warmup_fraction: Rate = 0.0,
) -> "LambdaLR":
    """Linear warm-up, then the peak rate.

    Args:
        optimizer: Its rate is the peak.
        total_steps: Optimizer steps of the training.
        warmup_steps: Optimizer steps of the linear warm-up; null: `warmup_fraction` of all steps.
        warmup_fraction: Fraction of all steps that is warm-up, where `warmup_steps` is null.
    """
    warmup = count_warmup(total_steps, warmup_steps, warmup_fraction)
    check_steps(total_steps, warmup)
    return build_scheduler(optimizer, warmup)
