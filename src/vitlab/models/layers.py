"""Layers that the lesson in `vit.py` leaves out: activations, dropout, LayerScale, stochastic depth."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Dropout, skipped if it has no effect, which saves 3 % of a small ViT's time."""
    return F.dropout(x, rate) if training and rate > 0.0 else x


def patch_dropout(x: Tensor, rate: float, prefix: int, training: bool) -> Tensor:
    """The prefix tokens and a random subset of the patches of each image, in random order."""
    if not training or rate == 0.0:
        return x
    from timm.layers.patch_dropout import PatchDropout

    return cast(Tensor, PatchDropout(rate, num_prefix_tokens=prefix)(x))


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def swiglu(x: Tensor) -> Tensor:
    """SiLU of one half of the channels times the other half (https://arxiv.org/abs/2002.05202)."""
    gate, x = x.chunk(2, dim=-1)
    return F.silu(gate) * x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "swiglu": swiglu,
}


class LayerScale(nn.Module):
    """A learned factor per channel of a residual branch (https://arxiv.org/abs/2103.17239)."""

    def __init__(self, *, dim: int, value: float) -> None:
        super().__init__()
        self.value, self.gamma = value, nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def drop_path(x: Tensor, keep: Tensor) -> Tensor:
    """Stochastic depth (https://arxiv.org/abs/1603.09382): zero a sample's branch with probability 1 - `keep`."""
    kept = x.new_empty(x.shape[0], 1, 1, dtype=torch.get_default_dtype()).uniform_() < keep  # B 1 1
    return x * (kept.to(x.dtype) / keep)


def add_branch(x: Tensor, rate: float, branch: Callable[[Tensor], Tensor]) -> Tensor:
    """Stochastic depth that computes the branch of a random subset of fixed size alone (DINOv2, arXiv 2304.07193)."""
    images = x.shape[0]
    kept = torch.randperm(images, device=x.device)[: max(1, int(images * (1.0 - rate)))]
    return x.index_add(0, kept, branch(kept).to(x.dtype), alpha=images / kept.shape[0])
