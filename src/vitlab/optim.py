"""From a network's parameters to optimizer groups, and from optimizer steps to learning rates.

The optimizers themselves are torch's and timm's; `conf/optimizer/` names them.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]
MakeSchedule = Callable[..., LambdaLR]


def parameter_groups(network: nn.Module, *, hidden_apart: bool = False) -> list[dict[str, Any]]:
    """Groups named `decay` (matrices and convolution kernels) and `no_decay` (all else, weight decay 0).

    No decay on vectors (biases, norms, LayerScale), nor on what the network's own `no_weight_decay()` names
    (timm's protocol: tokens and position embeddings). Frozen parameters are left out. The `decay` group takes the
    optimizer's own `weight_decay`.

    `hidden_apart`: for Muon, which is meant for the matrices between the first and the last layer; what is not in
    a block gets `use_fallback` (timm's word for "AdamW for these"), its matrices as a third group `decay_ends`.
    """
    rule: Any = getattr(network, "no_weight_decay", set)
    exempt: set[str] = rule()
    members: dict[str, list[nn.Parameter]] = {"decay": [], "decay_ends": [], "no_decay": []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            kind = "no_decay" if parameter.ndim < 2 or name in exempt else "decay"
            if hidden_apart and kind == "decay" and not name.startswith("blocks."):
                kind = "decay_ends"
            members[kind].append(parameter)
    groups: list[dict[str, Any]] = [{"name": k, "params": v} for k, v in members.items() if v]
    for group in groups:
        if group["name"] == "no_decay":
            group["weight_decay"] = 0.0
        if hidden_apart:
            group["use_fallback"] = group["name"] != "decay"
    return groups


def warmup(step: int, warmup_steps: int) -> float:
    """A straight line to 1, reached at step `warmup_steps`; the first step is not lost at a rate of 0."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def progress(step: int, total_steps: int, warmup_steps: int) -> float:
    """How much of the time after the warm-up is over, in [0, 1]."""
    return min(1.0, max(0, step - warmup_steps) / max(1, total_steps - warmup_steps))


def check_steps(total_steps: int, warmup_steps: int, cooldown_steps: int = 0) -> None:
    """Raises `ValueError` where warm-up and cool-down leave no step between them."""
    if warmup_steps + cooldown_steps >= total_steps:
        cooldown = f" and schedule.cooldown_steps={cooldown_steps}" if cooldown_steps else ""
        raise ValueError(
            f"schedule.warmup_steps={warmup_steps}{cooldown} leave nothing of the {total_steps} steps of training; "
            "lower them, or raise trainer.max_epochs or trainer.max_steps"
        )


def warmup_cosine(
    optimizer: Optimizer, total_steps: int, *, warmup_steps: int = 0, final_fraction: float = 0.0
) -> LambdaLR:
    """Linear warm-up, then half a cosine down to `final_fraction` of the peak (SGDR, arXiv 1608.03983)."""
    check_steps(total_steps, warmup_steps)

    def multiplier(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * progress(step, total_steps, warmup_steps)))
        return warmup(step, warmup_steps) * (final_fraction + (1 - final_fraction) * cosine)

    return LambdaLR(optimizer, multiplier)


def warmup_linear(
    optimizer: Optimizer, total_steps: int, *, warmup_steps: int = 0, final_fraction: float = 0.0
) -> LambdaLR:
    """Linear warm-up, then a straight line down to `final_fraction` of the peak."""
    check_steps(total_steps, warmup_steps)

    def multiplier(step: int) -> float:
        left = 1 - progress(step, total_steps, warmup_steps)
        return warmup(step, warmup_steps) * (final_fraction + (1 - final_fraction) * left)

    return LambdaLR(optimizer, multiplier)


def reciprocal_sqrt(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    timescale: int = 10_000,
    cooldown_steps: int = 0,
) -> LambdaLR:
    """Linear warm-up, then 1 / sqrt(1 + steps after it / timescale), then a straight line to 0.

    Training can be stopped, or go on, at any time before the cool-down ("Scaling Vision Transformers",
    arXiv 2106.04560, section 3.5).
    """
    check_steps(total_steps, warmup_steps, cooldown_steps)

    def multiplier(step: int) -> float:
        after = max(0, step - warmup_steps)
        cooldown = min(1.0, (total_steps - step) / cooldown_steps) if cooldown_steps else 1.0
        return warmup(step, warmup_steps) * math.sqrt(timescale / (timescale + after)) * cooldown

    return LambdaLR(optimizer, multiplier)


def constant(optimizer: Optimizer, total_steps: int, *, warmup_steps: int = 0) -> LambdaLR:
    """Linear warm-up, then the peak for ever."""
    check_steps(total_steps, warmup_steps)
    return LambdaLR(optimizer, lambda step: warmup(step, warmup_steps))
