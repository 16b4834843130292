"""Rules from the tensors of another library to vitlab's, readable in both directions; the tables are in `layouts`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

BLOCK = "{i}"  # the number of a block in a name


class Transform(NamedTuple):
    """`to` makes one of our tensors from theirs, `back` the reverse; `back` also gets the number of heads."""

    to: Callable[[Sequence[Tensor]], Tensor]
    back: Callable[[Tensor, int], Sequence[Tensor]]


SAME = Transform(lambda theirs: theirs[0], lambda ours, _: [ours])
STACKED = Transform(lambda theirs: torch.cat([*theirs]), lambda ours, _: ours.chunk(3))  # q, k, v
HALVES = Transform(lambda theirs: torch.cat([*theirs]), lambda ours, _: ours.chunk(2))  # gate and value
TOKEN = Transform(lambda theirs: theirs[0].view(1, 1, -1), lambda ours, _: [ours.flatten()])  # D
TABLE = Transform(lambda theirs: theirs[0].unsqueeze(0), lambda ours, _: [ours.squeeze(0)])  # N D
TRANSPOSED = Transform(lambda theirs: theirs[0].t(), lambda ours, _: [ours.t()])
JAX = Transform(  # P Q C D of a convolution, or in out of a linear layer
    lambda theirs: theirs[0].permute(3, 2, 0, 1) if theirs[0].ndim == 4 else theirs[0].t(),
    lambda ours, _: [ours.permute(2, 3, 1, 0) if ours.ndim == 4 else ours.t()],
)
JAX_QKV = Transform(  # each D h d
    lambda theirs: torch.cat([each.flatten(1).t() for each in theirs]),
    lambda ours, heads: [each.t().reshape(each.shape[1], heads, -1) for each in ours.chunk(3)],
)
JAX_QKV_BIAS = Transform(  # each h d
    lambda theirs: torch.cat([each.flatten() for each in theirs]),
    lambda ours, heads: [each.view(heads, -1) for each in ours.chunk(3)],
)
JAX_OUT = Transform(  # h d D
    lambda theirs: theirs[0].flatten(0, 1).t(), lambda ours, heads: [ours.t().reshape(heads, -1, ours.shape[0])]
)


class Rule(NamedTuple):
    """One of our tensors, and theirs from which it is made."""

    ours: str
    theirs: tuple[str, ...]
    form: Transform = SAME
    gated: bool | None = None  # written so for gated MLPs, or for others; None: for both


def weight_and_bias(ours: str, *theirs: str, form: Transform = SAME, gated: bool | None = None) -> list[Rule]:
    return [Rule(f"{ours}.{p}", tuple(f"{t}.{p}" for t in theirs), form, gated) for p in ("weight", "bias")]


def block_layers(block: str, *, gated: bool | None = None, **layers: str) -> list[Rule]:
    """The rules of a block's layers, ours by their names with an underscore: `mlp_fc1="output.dense"`."""
    return [
        rule
        for ours, theirs in layers.items()
        for rule in weight_and_bias(f"blocks.{BLOCK}.{ours.replace('_', '.')}", f"{block}.{theirs}", gated=gated)
    ]


def in_projection(attention: str) -> list[Rule]:
    """The rules of queries, keys and values in torch's nn.MultiheadAttention."""
    return [Rule(f"blocks.{BLOCK}.attn.qkv.{p}", (f"{attention}.in_proj_{p}",)) for p in ("weight", "bias")]


def jax_linear(ours: str, *theirs: str, weight: Transform = JAX, bias: Transform = SAME) -> list[Rule]:
    kernels, biases = (tuple(f"{layer}/{p}" for layer in theirs) for p in ("kernel", "bias"))
    return [Rule(f"{ours}.weight", kernels, weight), Rule(f"{ours}.bias", biases, bias)]


def jax_attention(attention: str) -> list[Rule]:
    qkv = [f"{attention}/{part}" for part in ("query", "key", "value")]
    return [
        *jax_linear(f"blocks.{BLOCK}.attn.qkv", *qkv, weight=JAX_QKV, bias=JAX_QKV_BIAS),
        *jax_linear(f"blocks.{BLOCK}.attn.proj", f"{attention}/out", weight=JAX_OUT),
    ]


def jax_norm(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.weight", (f"{theirs}/scale",)), Rule(f"{ours}.bias", (f"{theirs}/bias",))]


@dataclass(frozen=True)
class Layout:
    """A library's names and shapes of the tensors."""

    name: str  # the key in `LAYOUTS`
    title: str  # the name in messages
    anchor: str  # the patch projection's weight; the text before it in a file's names is the prefix
    rules: tuple[Rule, ...]  # of a tensor, the first whose sources exist is read, and the first that suits is written
    marks: tuple[str, ...] = ()  # names (regular expressions) that must exist in addition to the anchor
    inner: tuple[str, ...] = ()  # prefixes of the body's names, but not of the heads', in models with a head
    spellings: tuple[tuple[str, str], ...] = ()  # (pattern, replacement): names in older or newer releases
    # the tokens that the position table covers; None: inferred from its length
    positions: Literal["all", "class", "patches"] | None = None
    skipped: tuple[tuple[str, str], ...] = ()  # (pattern, reason) of tensors that have no place in our model
    # name -> shape, with "D" for the width, of tensors that the library requires and a classifier never reads
    zeros: Mapping[str, tuple[int | str, ...]] | None = None
    settings: Mapping[str, object] | None = None  # arguments of our model that follow from the layout

    def heads(self) -> set[str]:
        """Names of the classification heads' tensors."""
        return {name for rule in self.rules if rule.ours.startswith("head") for name in rule.theirs}
