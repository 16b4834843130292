"""Layers that the lesson in `vit.py` leaves out, and when one's weights may be used without a call of the layer."""

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


def is_plain(x: Tensor, *modules: nn.Module) -> bool:
    """Whether a shortcut past the calls of modules, or a call for fewer tokens, is exact and not observed.

    False if a module or a submodule has a hook (but those of torch.distributed, which gather weights) or a `forward`
    that isn't torch's or ours (LoRA, offloading), or is parametrized; and for torch.fx, which traces calls.
    """
    for each in modules:
        if each._forward_hooks or each._forward_pre_hooks:
            hooks = [*each._forward_hooks.values(), *each._forward_pre_hooks.values()]
            if not all(str(getattr(hook, "__module__", "")).startswith("torch.distributed.") for hook in hooks):
                return False
        if each._backward_hooks or each._backward_pre_hooks or "forward" in each.__dict__:
            return False
        if not getattr(type(each).forward, "__module__", "").startswith(("torch.nn.modules.", "vitlab.models.")):
            return False
        if each._modules and not is_plain(x, *filter(None, each._modules.values())):  # also the parametrizations
            return False
    return isinstance(x, Tensor)


def has_plain_weights(x: Tensor, layer: nn.Module) -> bool:
    """Whether F.linear with the layer's weights is its call; quantized and sharded weights compute their own."""
    kinds = (nn.Linear, nn.Conv2d)
    return type(layer) in kinds and not hasattr(layer.weight, "__tensor_flatten__") and is_plain(x, layer)
