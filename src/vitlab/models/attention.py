"""Scaled dot-product attention with three kernels: torch's, the formula, and one for bfloat16 on a CPU.

The last computes a few images at a time, so their attention weights stay in the processor's cache. Only queries, keys
and values are saved for backward, which computes the weights again (measured in docs/benchmark.md).

Shapes in the comments are those of `vit.py`: B images, h heads, M query tokens of N, d channels of a head.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from torch.utils.checkpoint import checkpoint

from vitlab.models.layers import has_plain_weights

MAX_TOKENS = 256  # of an image
CHUNK_WEIGHTS = 900_000  # attention weights at a time: three images of a ViT-S/16, seven of a Ti/16
MIN_QUERIES = 2**14  # elements; for fewer, torch's kernel is as fast without a backward pass
NO_DROPOUT = nn.Dropout(0.0)


def has_fused_kernels() -> bool:
    """What timm's `set_fused_attn` says of networks that are built from now on; True where timm isn't imported."""
    config = sys.modules.get("timm.layers.config")
    return config is None or bool(config.use_fused_attn())


def attention(q: Tensor, k: Tensor, v: Tensor, drop: nn.Dropout = NO_DROPOUT, *, fused: bool = True) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, B h M d. `fused=False`, or a hook on `drop`: step by step, the weights by `drop`."""
    if not fused or drop._forward_hooks or drop._forward_pre_hooks or drop._backward_hooks or drop._backward_pre_hooks:
        return torch.matmul(drop(attention_weights(q, k)), v)
    dropout = drop.p if drop.training else 0.0
    if isinstance(q, Tensor) and has_cpu_kernel(q, k, dropout):  # torch.fx traces with a Proxy
        return cpu_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)): B h M N, rows sum to 1."""
    scores: Tensor = q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)
    return scores.softmax(dim=-1)


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """B N parts*D -> `parts` times B h N d. With gradients, chunks before views save a copy in backward."""
    images, tokens, width = x.shape[0], x.shape[1], x.shape[2] // (parts * heads)
    if torch.is_grad_enabled() or is_tracing():  # type: ignore[no-untyped-call]
        chunks = x.chunk(parts, dim=2)  # torch.fx can't iterate over them
        return tuple(chunks[i].view(images, tokens, heads, width).transpose(1, 2) for i in range(parts))
    return x.view(images, tokens, parts, heads, width).permute(2, 0, 3, 1, 4).unbind(0)


def project_heads(layer: nn.Linear, x: Tensor, heads: int, queries: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries B h M d (of the first `queries` tokens), keys and values B h N d, by one layer D -> 3*D."""
    dim = x.shape[2]
    if queries is None or not has_plain_weights(x, layer):
        q, k, v = split_heads(layer(x), 3, heads)
        return q if queries is None else q[:, :, :queries], k, v
    weight, bias = layer.weight, layer.bias
    (q,) = split_heads(F.linear(x[:, :queries], weight[:dim], None if bias is None else bias[:dim]), 1, heads)
    k, v = split_heads(F.linear(x, weight[dim:], None if bias is None else bias[dim:]), 2, heads)
    return q, k, v


def has_cpu_kernel(q: Tensor, k: Tensor, dropout: float) -> bool:
    """Whether `cpu_attention` is the fastest for queries B h M d and keys B h N d; if compiled, in training alone."""
    narrow = q.is_cpu and q.dtype == torch.bfloat16 and dropout == 0.0 and k.shape[2] <= MAX_TOKENS
    eager = narrow and not torch.compiler.is_compiling()
    vectorized = eager and torch._C._are_functorch_transforms_active()  # by torch.func, which needs torch's kernel
    return narrow and not vectorized and (q.requires_grad or (eager and q.numel() >= MIN_QUERIES))


def cpu_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: B h M d, chunk by chunk; it has no second derivative."""
    if torch.compiler.is_compiling():
        return checkpoint(mix, q, k, v, use_reentrant=False)
    if not (torch.is_grad_enabled() and q.requires_grad):
        return chunked_mix(q, k, v)
    mixed: Tensor = ChunkedAttention.apply(q, k, v)
    return mixed


def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q3, k3, v3 = (x.flatten(0, 1) for x in (q, k, v))  # B*h M or N d
    return (chunk_weights(q3, k3) @ v3).view(q.shape)


def chunk_weights(q: Tensor, k: Tensor) -> Tensor:
    return scaled_product(q, k.transpose(1, 2), q.shape[2] ** -0.5).softmax(dim=-1)  # B*h M N


def scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale)  # beta=0: the first is ignored


class ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return chunked_mix(q, k, v)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        gradients = [chunk_gradients(*chunk) for chunk in chunks(*ctx.saved_tensors, gradient)]
        return tuple(concatenate(each) for each in zip(*gradients, strict=True))


def chunked_mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return concatenate([mix(*chunk) for chunk in chunks(q, k, v)])


def chunk_gradients(q: Tensor, k: Tensor, v: Tensor, mixed: Tensor) -> tuple[Tensor, ...]:
    """Gradients of queries, keys and values from the gradient of the output."""
    scale, q3, k3, v3, mixed = q.shape[3] ** -0.5, *(x.flatten(0, 1) for x in (q, k, v, mixed))
    weights = chunk_weights(q3, k3)
    scores = torch.ops.aten._softmax_backward_data(mixed @ v3.transpose(1, 2), weights, -1, weights.dtype)
    of_q, of_k = scaled_product(scores, k3, scale), scaled_product(scores.transpose(1, 2), q3, scale)
    return of_q.view(q.shape), of_k.view(k.shape), (weights.transpose(1, 2) @ mixed).view(v.shape)


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few images at a time, of q, k, v (and of a gradient)."""
    (_, heads, queries, _), keys = tensors[0].shape, tensors[1].shape[2]
    images = max(1, CHUNK_WEIGHTS // (heads * queries * keys))
    return zip(*(torch.split(tensor, images) for tensor in tensors), strict=True)


def concatenate(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
