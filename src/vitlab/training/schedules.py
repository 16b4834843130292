"""Learning rates as functions of the optimizer step. torch is imported late: preflight needs none.

The optimizer's rate is the peak. `total_steps` and `steps_per_epoch` are those of the optimizer.
"""

import math
from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

from vitlab.config.bounds import NonNegativeFloat, NonNegativeInt, PositiveInt, Probability, Rate, check_bounds

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

ScheduleFactory = Callable[..., "LambdaLR"]


def call_schedule(make: ScheduleFactory, optimizer: "Optimizer", **steps: int | None) -> "LambdaLR":
    """Call a schedule with those of `total_steps` and `steps_per_epoch` that its signature has."""
    return make(optimizer, **{name: count for name, count in steps.items() if name in signature(make).parameters})


def build_scheduler(
    optimizer: "Optimizer",
    warmup_steps: int,
    decay: Callable[[int], float],
    *,
    start: float | None = None,
    interval: int = 1,
) -> "LambdaLR":
    """Multiply each rate by `decay(step)` and a linear warm-up to 1, every `interval` steps.

    The warm-up begins at the fraction `start`, or (None) as if one step were done, so that the first one isn't 0.
    """
    from torch.optim.lr_scheduler import LambdaLR

    def factor(step: int) -> float:
        step -= step % interval
        if start is not None and step < warmup_steps:
            return (start + (1 - start) * step / warmup_steps) * decay(step)
        return min(1.0, (step + interval) / max(1, warmup_steps)) * decay(step)

    return LambdaLR(optimizer, factor)


def peak_rate(optimizer: "Optimizer") -> float:
    """The peak rate before layer decay, which scales absolute rates too (as in MAE and timm)."""
    group = optimizer.param_groups[0]
    return float(group["lr"] / group.get("lr_factor", 1.0))


def decay_progress(step: int, total_steps: int, warmup_steps: int) -> float:
    """The fraction of the steps after the warm-up that are done, in [0, 1]."""
    return min(1.0, max(0, step - warmup_steps) / max(1, total_steps - warmup_steps))


def count_warmup(
    total_steps: int,
    steps: int | None,
    fraction: float = 0.0,
    epochs: float | None = None,
    steps_per_epoch: int | None = None,
    cooldown_steps: int = 0,
) -> int:
    """The steps of the warm-up: `steps`, else `epochs`, else `fraction` of all steps, but never all of them.

    Raises `ValueError` if warm-up and cool-down leave no step between them.
    """
    warmup = min(round(fraction * total_steps), total_steps - 1) if steps is None else steps
    setting, remedy = f"schedule.warmup_steps={steps}", "schedule.warmup_steps=null with schedule.warmup_fraction=0.02"
    if steps is None and epochs is not None:
        if steps_per_epoch is None:
            raise ValueError(f"schedule.warmup_epochs={epochs:g} needs a data module that counts steps_per_epoch")
        warmup, setting, remedy = round(epochs * steps_per_epoch), f"schedule.warmup_epochs={epochs:g}", "fewer epochs"
    if warmup + cooldown_steps < total_steps:
        return warmup
    if warmup < total_steps:
        setting = f"schedule.cooldown_steps={cooldown_steps} and a warm-up of {warmup} steps"
        remedy = f"at most schedule.cooldown_steps={total_steps - warmup - 1}"
    problem = f"{setting} leave{'' if warmup < total_steps else 's'} nothing of the {total_steps} steps of training"
    raise ValueError(f"{problem}; use {remedy}, or raise trainer.max_epochs or trainer.max_steps")


@check_bounds
def warmup_cosine(
    optimizer: "Optimizer",
    total_steps: int,
    steps_per_epoch: int | None = None,
    *,
    warmup_steps: NonNegativeInt | None = None,
    warmup_epochs: NonNegativeFloat | None = None,
    warmup_fraction: Rate = 0.0,
    warmup_start_fraction: Probability | None = None,
    final_fraction: Probability = 0.0,
    final_lr: NonNegativeFloat | None = None,
    per_epoch: bool = False,
) -> "LambdaLR":
    """Linear warm-up, then half a cosine down to `final_fraction` of the peak (SGDR, arXiv 1608.03983).

    MAE has `warmup_start_fraction` 0 and `final_lr` 1e-6, torchvision `per_epoch` and `warmup_start_fraction` 0.033.

    Args:
        warmup_steps: Optimizer steps of the linear warm-up; null: `warmup_epochs`, or `warmup_fraction`.
        warmup_epochs: Epochs of warm-up, where `warmup_steps` is null; null: `warmup_fraction` of all steps.
        warmup_fraction: Fraction of all steps that is warm-up, where the others are null.
        warmup_start_fraction: Rate of the first step as a fraction of the peak, which the step after the warm-up has;
            null: 1 / warm-up steps, and its last step has the peak.
        final_fraction: Rate at the end, as a fraction of the peak.
        final_lr: Rate at the end, in place of `final_fraction`. Scaled by layer decay.
        per_epoch: Change the rate once an epoch.
    """
    if per_epoch and steps_per_epoch is None:
        raise ValueError("schedule.per_epoch needs a data module that counts steps_per_epoch")
    warmup = count_warmup(total_steps, warmup_steps, warmup_fraction, warmup_epochs, steps_per_epoch)
    final = final_fraction if final_lr is None else final_lr / peak_rate(optimizer)

    def decay(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * decay_progress(step, total_steps, warmup)))
        return final + (1 - final) * cosine

    interval = steps_per_epoch if per_epoch and steps_per_epoch else 1
    return build_scheduler(optimizer, warmup, decay, start=warmup_start_fraction, interval=interval)


@check_bounds
def timm_cosine(
    optimizer: "Optimizer",
    total_steps: int,
    steps_per_epoch: int,
    *,
    warmup_steps: NonNegativeInt | None = None,
    warmup_epochs: NonNegativeFloat = 5.0,
    warmup_lr: NonNegativeFloat = 1e-6,
    warmup_prefix: bool = False,
    min_lr: NonNegativeFloat = 1e-5,
    cooldown_epochs: NonNegativeInt = 0,
    delay_epochs: NonNegativeInt = 0,
    per_epoch: bool = True,
) -> "LambdaLR":
    """timm's CosineLRScheduler: half a cosine over all epochs, whose beginning a linear warm-up replaces.

    Args:
        warmup_steps: Optimizer steps of the warm-up; null: `warmup_epochs`.
        warmup_epochs: Epochs of the warm-up.
        warmup_lr: Rate at the beginning. Scaled by layer decay, as is `min_lr`.
        warmup_prefix: Begin the cosine after the warm-up, at the peak.
        min_lr: Rate at the end.
        cooldown_epochs: Epochs of the training, its last ones, at `min_lr`. timm's program adds them to its epochs.
        delay_epochs: Epochs by which rates are late: 0 in timm's program, 1 in DeiT's, whose first two are alike.
        per_epoch: Change the rate once an epoch; false: in each step.
    """
    import torch
    from timm.scheduler.cosine_lr import CosineLRScheduler

    interval, peak = steps_per_epoch if per_epoch else 1, peak_rate(optimizer)
    cooldown = cooldown_epochs * steps_per_epoch
    counts = {"steps_per_epoch": steps_per_epoch, "cooldown_steps": cooldown}
    warmup = count_warmup(total_steps, warmup_steps, epochs=warmup_epochs, **counts)
    rate = torch.optim.SGD([torch.zeros(1)], lr=peak)
    length = math.ceil((total_steps - cooldown - warmup * warmup_prefix) / interval)
    rates: Any = {"lr_min": min_lr, "warmup_lr_init": warmup_lr, "warmup_t": warmup / interval}
    cosine = CosineLRScheduler(rate, length, warmup_prefix=warmup_prefix, **rates)

    def factor(step: int) -> float:
        cosine.step(max(0, step - delay_epochs * steps_per_epoch) // interval)
        return float(rate.param_groups[0]["lr"] / peak)

    return build_scheduler(optimizer, 0, factor)


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
        warmup_steps: Optimizer steps of the linear warm-up; null: `warmup_fraction` of all steps.
        warmup_fraction: Fraction of all steps that is warm-up, where `warmup_steps` is null.
        final_fraction: Rate at the end, as a fraction of the peak.
    """
    warmup = count_warmup(total_steps, warmup_steps, warmup_fraction)

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
        warmup_steps: Optimizer steps of the linear warm-up; null: `warmup_fraction` of all steps.
        warmup_fraction: Fraction of all steps that is warm-up, where `warmup_steps` is null.
        timescale: Steps after the warm-up at which the rate is 1 / sqrt(2) of the peak.
        cooldown_steps: Steps of the straight line to 0 at the end.
    """
    warmup = count_warmup(total_steps, warmup_steps, warmup_fraction, cooldown_steps=cooldown_steps)

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
    decay_fraction: Rate = 0.0,
    decay_shape: Literal["sqrt", "linear"] = "sqrt",
    final_fraction: Probability = 0.0,
) -> "LambdaLR":
    """Linear warm-up, then the peak rate, then a decay over the last steps, if any (arXiv 2405.18392).

    Args:
        warmup_steps: Optimizer steps of the linear warm-up; null: `warmup_fraction` of all steps.
        warmup_fraction: Fraction of all steps that is warm-up, where `warmup_steps` is null.
        decay_fraction: Fraction of all steps, the last ones, in which the rate decays.
        decay_shape: `linear`, or `sqrt`: as 1 - sqrt(fraction of the decay that is done).
        final_fraction: Rate at the end of the decay, as a fraction of the peak.
    """
    warmup = count_warmup(total_steps, warmup_steps, warmup_fraction)
    begin, power = max(warmup, round((1 - decay_fraction) * total_steps)), 0.5 if decay_shape == "sqrt" else 1.0
    fall = 1 - final_fraction if decay_fraction else 0.0
    return build_scheduler(optimizer, warmup, lambda step: 1 - fall * decay_progress(step, total_steps, begin) ** power)
