"""What a Vision Transformer attends to: its exact attention maps, rollout, attention distance and entropy.

`trace` runs a network once, with torch's fused attention replaced by its formula. So the maps are those of the network
as it runs, with its norms of queries and keys, rotary positions and biases. It takes networks whose blocks each call
the fused attention once: vitlab's and timm's ViTs, DeiT, BEiT, EVA and DINOv3.

Shapes in the comments: B images, L blocks, h heads, N tokens: a prefix ([cls], registers), then the R * S patches.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# While a network is traced: the fused attention, which is replaced, and no activations that are computed twice.
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
        return rows[..., self.prefix :].unflatten(-1, self.grid)


class FormulaAttention(TorchFunctionMode):
    """Computes softmax(q k^T / sqrt(d)) v step by step in place of torch's fused attention, and keeps the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self.attend if func is F.scaled_dot_product_attention else func)(*args, **(kwargs or {}))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **others: Any) -> Any:
        scale = others.get("scale") or query.shape[-1] ** -0.5
        scores = query * scale @ key.transpose(-2, -1)
        if attn_mask is not None:
            keeps = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, float("-inf")) if keeps else scores + attn_mask
        weights = scores.softmax(dim=-1)
        if torch.is_grad_enabled() and not weights.requires_grad:
            weights.requires_grad_()  # of a frozen network: relevance needs the gradient
        self.maps.append(weights)
        return weights @ value


def trace(network: nn.Module, images: Tensor) -> Trace:
    """Run a network in evaluation mode on normalized images B C height width.

    The last block computes all tokens, also where `forward` leaves out those that the head doesn't read. Raises
    `ValueError` for a network without such maps.
    """
    name, vit = type(network).__name__, cast(Any, network)
    grid, prefix = patch_grid(network, images), prefix_tokens(network)
    tokens: list[Tensor] = []
    calls: list[int] = []
    mode = FormulaAttention()

    def keep(block: nn.Module, arguments: Any, output: Tensor) -> None:
        tokens.append(output)
        calls.append(len(mode.maps))

    with ExitStack() as stack, traced(network):
        for block in blocks(network):
            stack.callback(block.register_forward_hook(keep).remove)
        with mode:
            logits = vit.forward_head(vit.forward_features(images))
    depth, expected = len(tokens), prefix + grid[0] * grid[1]
    if not calls or calls != [*range(1, depth + 1)]:
        raise ValueError(f"{name} has no attention maps: a block of it doesn't call torch's attention exactly once")
    if any(x.shape[-1] != expected or x.shape[-2] != expected for x in mode.maps[:depth]):
        shape = tuple(mode.maps[0].shape[-2:])
        raise ValueError(f"{name}: attention of {shape} doesn't fit {prefix} + {grid[0]} x {grid[1]} tokens")
    pooled = mode.maps[depth] if len(mode.maps) > depth else None
    read = head_reads(network, tokens[-1], prefix) if pooled is None else pooled.mean(dim=(1, 2)).detach()
    logits = logits.mean(dim=1) if logits.ndim == 3 else logits  # of a network that classifies each token
    patch = (images.shape[2] // grid[0], images.shape[3] // grid[1])
    return Trace(mode.maps[:depth], pooled, tokens, logits, read, prefix, grid, patch)


@contextmanager
def traced(network: nn.Module) -> Iterator[None]:
    """Set the attributes `TRACED` of all modules that have them, and afterwards what they were."""
    if network.training:
        raise ValueError("the network is in training mode; call network.eval() first")
    former = [(vars(m), key, vars(m)[key]) for m in network.modules() for key in TRACED if key in vars(m)]
    for attributes, key, _ in former:
        attributes[key] = TRACED[key]
    try:
        yield
    finally:
        for attributes, key, value in former:
            attributes[key] = value


def blocks(network: nn.Module) -> list[nn.Module]:
    blocks = getattr(network, "blocks", None)
    if not isinstance(blocks, nn.Module) or not hasattr(network, "forward_head"):
        raise ValueError(f"{type(network).__name__} is no Vision Transformer of vitlab or timm: it has no `blocks`")
    return [*blocks.children()]


def patch_grid(network: nn.Module, images: Tensor) -> tuple[int, int]:
    """Rows and columns of patches, of networks for any image size those of these images."""
    embed: Any = getattr(network, "patch_embed", None)
    size = getattr(embed, "dynamic_feat_size", lambda size: getattr(embed, "grid", None))
    if (grid := size(tuple(images.shape[2:]))) is None:
        raise ValueError(f"{type(network).__name__} has no grid of patches of one size, as a Vision Transformer has")
    return int(grid[0]), int(grid[1])


def prefix_tokens(network: nn.Module) -> int:
    return int(getattr(network, "prefix", getattr(network, "num_prefix_tokens", 0)))


def head_reads(network: nn.Module, tokens: Tensor, prefix: int) -> Tensor:
    """The share of each of the tokens B N D in what the head reads, B N."""
    read = tokens.new_zeros(tokens.shape[:2])
    pool = getattr(network, "global_pool", getattr(network, "pool", "avg"))  # timm's `pool` is a method
    if getattr(network, "dist_token", None) is not None:
        read[:, :2] = 0.5  # both heads have an equal share in the logits
    elif pool in ("cls", "token"):
        read[:, 0] = 1.0
    else:
        patches = slice(0 if getattr(network, "pool_include_prefix", False) else prefix, None)
        read[:, patches] = 1.0 / read[:, patches].shape[1]
    return read


def head_attention(trace: Trace) -> Tensor:
    """Attention of what the head reads ([cls], or the mean over the patches) to the patches: B L h R S."""
    rows = [torch.einsum("bn,bhnm->bhm", trace.read, weights) for weights in trace.maps]
    return trace.to_grid(torch.stack(rows, dim=1))


def rollout(trace: Trace) -> Tensor:
    """Attention through all blocks with their residual connections, B R S: the product of (A + I) / 2, A the mean of
    the heads (Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928).
    """
    row = trace.read[:, None]  # B 1 N; from the left, no product of two N x N matrices is needed
    for weights in reversed(trace.maps):
        row = (row + row @ weights.mean(dim=1)) / 2
    return trace.to_grid(row[:, 0])


def attention_distance(trace: Trace) -> Tensor:
    """Mean distance in pixels between a query patch and the patches that it attends to, weighted by attention: B L h.

    Figures 7 and 11 of the ViT paper. The weights of the patches sum to 1, without those of the prefix.
    """
    rows, columns = torch.meshgrid(*(torch.arange(count) for count in trace.grid), indexing="ij")
    places = torch.stack([rows.flatten() * trace.patch[0], columns.flatten() * trace.patch[1]], dim=1).float()
    distances, start = torch.cdist(places, places).to(trace.read), trace.prefix  # n n
    weights = [F.normalize(x[:, :, start:, start:], p=1, dim=-1) for x in trace.maps]
    return torch.stack([(x * distances).sum(dim=-1).mean(dim=-1) for x in weights], dim=1)


def attention_entropy(trace: Trace) -> Tensor:
    """Mean entropy in nats of the attention of a token to all tokens, at most log N: B L h."""
    return torch.stack([torch.special.entr(x).sum(dim=-1).mean(dim=-1) for x in trace.maps], dim=1)
