"""Attention in bfloat16 on a CPU by the formula, for few tokens: torch's own kernel takes longer there.

Some images at a time, so that their weights stay in the processor's cache. Only queries, keys and values are kept for
backward, which computes the weights again. Measured in experiments/benchmark.md.

Shapes in the comments are those of `vit.py`: B images, h heads, M of N tokens ask, d channels of a head.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TOKENS = 256  # of an image, at most
WEIGHTS = 900_000  # at a time: those of three images of a ViT-S/16, of seven of a Ti/16
LEAST = 2**14  # elements of the queries: for less the kernel is as fast, when nothing goes back through it


def serves(q: Tensor, k: Tensor, dropout: float) -> bool:
    """Whether this file is for such queries and keys, B h M d and B h N d.

    Of compiled code only for training: a compiler keeps the weights of all images.
    """
    narrow = q.is_cpu and q.dtype == torch.bfloat16 and dropout == 0.0 and k.shape[2] <= TOKENS
    return narrow and (q.requires_grad or (q.numel() >= LEAST and not torch.compiler.is_compiling()))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: B h M d, as F.scaled_dot_product_attention; it has no second derivative."""
    if torch.compiler.is_compiling():
        return checkpoint(mix, q, k, v, use_reentrant=False)
    if not (torch.is_grad_enabled() and q.requires_grad):
        return in_parts(q, k, v)
    mixed: Tensor = Attention.apply(q, k, v)
    return mixed


def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q3, k3, v3 = (x.flatten(0, 1) for x in (q, k, v))  # B*h M or N d
    return (weigh(q3, k3) @ v3).view(q.shape)


def weigh(q: Tensor, k: Tensor) -> Tensor:
    return scaled_product(q, k.transpose(1, 2), q.shape[2] ** -0.5).softmax(dim=-1)  # B*h M N


def scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale)  # what is added to counts 0 times


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return in_parts(q, k, v)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        found = [gradients(*few) for few in parts(*ctx.saved_tensors, gradient)]
        return tuple(together(each) for each in zip(*found, strict=True))


def in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return together([mix(*few) for few in parts(q, k, v)])


def gradients(q: Tensor, k: Tensor, v: Tensor, mixed: Tensor) -> tuple[Tensor, ...]:
    """Of queries, keys and values, from that of what was mixed."""
    scale, q3, k3, v3, mixed = q.shape[3] ** -0.5, *(x.flatten(0, 1) for x in (q, k, v, mixed))
    weights = weigh(q3, k3)
    scores = torch.ops.aten._softmax_backward_data(mixed @ v3.transpose(1, 2), weights, -1, weights.dtype)
    of_q, of_k = scaled_product(scores, k3, scale), scaled_product(scores.transpose(1, 2), q3, scale)
    return of_q.view(q.shape), of_k.view(k.shape), (weights.transpose(1, 2) @ mixed).view(v.shape)


def parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some images at a time, of q, k, v (and of a gradient)."""
    (_, heads, asking, _), asked = tensors[0].shape, tensors[1].shape[2]
    images = max(1, WEIGHTS // (heads * asking * asked))
    return zip(*(torch.split(tensor, images) for tensor in tensors), strict=True)


def together(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
