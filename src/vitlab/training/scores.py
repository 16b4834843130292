"""Sums of scores: exact, whatever the network's precision."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class Scores(nn.ModuleDict):
    """Metrics whose sums keep their types when the network is converted (`trainer.precision=bf16-true`)."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Scores":
        def move(tensor: Tensor) -> Tensor:
            device = fn(torch.empty(0, device=tensor.device)).device
            double_to_single = device.type == "mps" and tensor.dtype == torch.float64  # it has no float64
            return tensor.to(device, torch.float32 if double_to_single else tensor.dtype)

        return cast(Scores, super()._apply(move, recurse))  # type: ignore[no-untyped-call]


class Count(Metric):
    """The sum of integers or booleans over all ranks, as an integer."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        self.total += values.sum()

    def compute(self) -> Tensor:
        return self.total


class Mean(Metric):
    """The mean over all ranks (`finite_only`: of finite values), in float64; torchmetrics' own waits for the device."""

    mean_value: Tensor  # the sum so far; checkpoints have this name
    weight: Tensor

    def __init__(self, *, finite_only: bool = False) -> None:
        super().__init__()
        self.finite_only = finite_only
        for name in ("mean_value", "weight"):
            self.add_state(name, default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        counted = values.isfinite() if self.finite_only else torch.ones_like(values, dtype=torch.bool)
        self.mean_value += values.to(self.mean_value.dtype).where(counted, 0.0).sum()
        self.weight += counted.sum()

    def compute(self) -> Tensor:
        return self.mean_value / self.weight


def at_least_float32(values: Tensor) -> Tensor:
    """The values as they are, or in float32 if their type is narrower."""
    return values if torch.finfo(values.dtype).bits >= 32 else values.float()
