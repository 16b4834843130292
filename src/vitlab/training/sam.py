"""Sharpness-aware minimization (arXiv 2010.01412; for ViTs arXiv 2106.01548): `optimizer=sam`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitlab.config.bounds import PositiveFloat, check_bounds
from vitlab.training.checkpoint_state import random_state, restore_random_state


class SAM(torch.optim.AdamW):
    """AdamW on the gradient at w + `rho` g / |g|, where g is the gradient at the weights w: two passes a step.

    Both passes see the same images with the same dropout. `train/loss` is the mean of both losses, and `grad_norm`
    the norm of the second gradient.

    Args:
        params: Parameters or groups of them.
        rho: Length of the step to the neighbor, over all parameters together.
        options: Of torch.optim.AdamW.
    """

    @check_bounds
    def __init__(self, params: Any, *, rho: PositiveFloat = 0.05, **options: Any) -> None:
        super().__init__(params, **options)
        self.rho = rho

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if closure is None:
            raise ValueError("optimizer=sam computes gradients twice a step, so its step needs a closure")
        device = self.param_groups[0]["params"][0].device
        state = random_state(device)
        with torch.enable_grad():
            loss = closure()
        restore_random_state(state, device)
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [p.clone() for p in moved]
        gradients: list[Tensor] = [p.grad for p in moved if p.grad is not None]
        if not gradients:  # the step is skipped
            return loss
        scale = self.rho / (torch.nn.utils.get_total_norm(gradients) + 1e-12)
        torch._foreach_add_(moved, torch._foreach_mul(gradients, scale))
        with torch.enable_grad():
            closure()
        for parameter, old in zip(moved, before, strict=True):
            parameter.copy_(old)
        super().step()
        return loss
