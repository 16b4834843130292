"""What a Vision Transformer attends to: its exact attention maps, rollout, attention distance and entropy.

`trace` runs a network with torch's fused attention replaced by its formula, so the maps are those of the network as it
runs, with norms of queries and keys, rotary positions and biases. It takes networks whose blocks each call the fused
attention once: vitlab's, and timm's ViT, DeiT, BEiT, EVA, DINOv3 and others.

Shapes in the comments: B images, L blocks, h heads, N tokens: a prefix ([cls], registers), then the R * S patches.
"""

from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# In a trace: fused attention, which is replaced, and no activations that are computed twice.
TRACED = {"fused": True, "fused_attn": True, "activation_checkpointing": False, "grad_checkpointing": False}


class Trace(NamedTuple):
    """What a network computed for a batch."""

    maps: list[Tensor]  # attention weights of each block, B h N N; row i, of query i, sums to 1
    pooled: Tensor | None  # those of an attention pooling (timm's global_pool="map"), B h M N
    tokens: list[Tensor]  # output of each block, B N D
    logits: Tensor  # B classes
    read: Tensor  # the share of each token in what the head reads, B N: of [cls], or the mean of the patches
    prefix: int
    grid: tuple[int, int]  # R, S
    patch: tuple[int, int]  # height and width of a patch in pixels

    def to_grid(self, rows: Tensor) -> Tensor:
        """The patches' part of values of tokens, ... N -> ... R S."""
        return rows[..., self.prefix :].reshape(*rows.shape[:-1], *self.grid)


class FormulaAttention(TorchFunctionMode):
    """Computes softmax(q k^T / sqrt(d)) v step by step in place of torch's fused attention, and keeps the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self.attend if func is F.scaled_dot_product_attention else func)(*args, **(kwargs or {}))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **others: Any) -> Any:
        scores = query * (others.get("scale") or query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if attn_mask is not None:
            keeps = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, float("-inf")) if keeps else scores + attn_mask
        weights = scores.softmax(dim=-1)
        if torch.is_grad_enabled() and not weights.requires_grad:
            weights.requires_grad_()  # of a frozen network: relevance needs the gradient
        self.maps.append(weights)
        return weights @ value


def trace(network: nn.Module, images: Tensor) -> Trace:
    """Run a network in evaluation mode on normalized images B C height width; ValueError if it has no such maps.

    The last block computes all tokens, also where `forward` leaves out those that the head doesn't read.
    """
    vit, size, mode = cast(Any, network), images.shape[2:], FormulaAttention()
    tokens, calls = list[Tensor](), list[int]()
    blocks, embed = (getattr(network, name, None) for name in ("blocks", "patch_embed"))
    grid = getattr(embed, "dynamic_feat_size", lambda size: getattr(embed, "grid", None))(tuple(size))
    if not isinstance(blocks, nn.Module) or grid is None or network.training:
        wanted = "maps need a Vision Transformer of vitlab or timm in evaluation mode, with one grid of patches"
        raise ValueError(f"{type(network).__name__}: attention {wanted}")

    def keep(block: nn.Module, arguments: Any, output: Tensor) -> None:
        tokens.append(output)
        calls.append(len(mode.maps))

    with ExitStack() as stack:
        for attributes in map(vars, network.modules()):
            for key in TRACED.keys() & attributes.keys():
                stack.callback(attributes.update, {key: attributes[key]})
                attributes[key] = TRACED[key]
        for block in blocks.children():
            stack.callback(block.register_forward_hook(keep).remove)
        with mode:
            logits = vit.forward_head(vit.forward_features(images))
    prefix, depth = int(getattr(network, "prefix", getattr(network, "num_prefix_tokens", 0))), len(tokens)
    shapes = {tuple(x.shape[-2:]) for x in mode.maps[:depth]}
    if calls != [*range(1, depth + 1)] or shapes != {(prefix + grid[0] * grid[1],) * 2}:
        raise ValueError(f"{type(network).__name__}: a block doesn't call torch's attention once, over all its tokens")
    pooled = mode.maps[depth] if len(mode.maps) > depth else None
    read = head_reads(network, tokens[-1], prefix) if pooled is None else pooled.mean(dim=(1, 2)).detach()
    logits = logits.mean(dim=1) if logits.ndim == 3 else logits  # of a network that classifies each token
    patch = (size[0] // grid[0], size[1] // grid[1])
    return Trace(mode.maps[:depth], pooled, tokens, logits, read, prefix, (grid[0], grid[1]), patch)


def head_reads(network: nn.Module, tokens: Tensor, prefix: int) -> Tensor:
    """The share of each of the tokens B N D in what the head reads, B N."""
    read = tokens.new_zeros(tokens.shape[:2])
    start, end = 0 if getattr(network, "pool_include_prefix", False) else prefix, read.shape[1]
    if getattr(network, "dist_token", None) is not None:
        start, end = 0, 2  # both heads have an equal share in the logits
    elif getattr(network, "global_pool", getattr(network, "pool", "avg")) in ("cls", "token"):  # timm's pool: a method
        start, end = 0, 1
    read[:, start:end] = 1 / (end - start)
    return read


def head_attention(trace: Trace) -> Tensor:
    """Attention of what the head reads ([cls], or the mean over the patches) to the patches: B L h R S."""
    rows = [torch.einsum("bn,bhnm->bhm", trace.read, weights) for weights in trace.maps]
    return trace.to_grid(torch.stack(rows, dim=1))


def rollout(trace: Trace) -> Tensor:
    """The product of (A + I) / 2 over the blocks, A the mean of the heads: B R S (https://arxiv.org/abs/2005.00928)."""
    row = trace.read[:, None]  # B 1 N; from the left, no product of two N x N matrices is needed
    for weights in reversed(trace.maps):
        row = (row + row @ weights.mean(dim=1)) / 2
    return trace.to_grid(row[:, 0])


def attention_distance(trace: Trace) -> Tensor:
    """Mean distance in pixels between a patch and the patches that it attends to, weighted by attention: B L h."""
    axes = (torch.arange(count) * float(side) for count, side in zip(trace.grid, trace.patch, strict=True))
    places, start = torch.cartesian_prod(*axes).to(trace.read), trace.prefix  # n 2
    weights = [F.normalize(x[:, :, start:, start:], p=1, dim=-1) for x in trace.maps]  # without the prefix
    return torch.stack([(x * torch.cdist(places, places)).sum(dim=-1).mean(dim=-1) for x in weights], dim=1)


def attention_entropy(trace: Trace) -> Tensor:
    """Mean entropy in nats of a token's attention to all tokens, at most log N: B L h."""
    return torch.stack([torch.special.entr(x).sum(dim=-1).mean(dim=-1) for x in trace.maps], dim=1)
