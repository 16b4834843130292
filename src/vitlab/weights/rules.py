"""Rules from the tensors of another library to ours, readable in both directions; the tables are in `layouts.yaml`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

BLOCK = "{i}"  # the number of a block in a name


class Transform(NamedTuple):
    """`to` makes one of our tensors from theirs, `back` the reverse; `back` also gets the number of heads."""

    to: Callable[[Sequence[Tensor]], Tensor]
    back: Callable[[Tensor, int], Sequence[Tensor]]


TRANSFORMS = {
    "same": Transform(lambda theirs: theirs[0], lambda ours, _: [ours]),
    "stacked": Transform(lambda theirs: torch.cat([*theirs]), lambda ours, _: ours.chunk(3)),  # q, k, v
    "halves": Transform(lambda theirs: torch.cat([*theirs]), lambda ours, _: ours.chunk(2)),  # gate and value
    "token": Transform(lambda theirs: theirs[0].view(1, 1, -1), lambda ours, _: [ours.flatten()]),  # D
    "table": Transform(lambda theirs: theirs[0].unsqueeze(0), lambda ours, _: [ours.squeeze(0)]),  # N D
    "transposed": Transform(lambda theirs: theirs[0].t(), lambda ours, _: [ours.t()]),
    "jax": Transform(  # P Q C D of a convolution, or in out of a linear layer
        lambda theirs: theirs[0].permute(3, 2, 0, 1) if theirs[0].ndim == 4 else theirs[0].t(),
        lambda ours, _: [ours.permute(2, 3, 1, 0) if ours.ndim == 4 else ours.t()],
    ),
    "jax_qkv": Transform(  # each D h d
        lambda theirs: torch.cat([each.flatten(1).t() for each in theirs]),
        lambda ours, heads: [each.t().reshape(each.shape[1], heads, -1) for each in ours.chunk(3)],
    ),
    "jax_qkv_bias": Transform(  # each h d
        lambda theirs: torch.cat([each.flatten() for each in theirs]),
        lambda ours, heads: [each.view(heads, -1) for each in ours.chunk(3)],
    ),
    "jax_out": Transform(  # h d D
        lambda theirs: theirs[0].flatten(0, 1).t(), lambda ours, heads: [ours.t().reshape(heads, -1, ours.shape[0])]
    ),
}


class Rule(NamedTuple):
    """One of our tensors, and theirs from which it is made."""

    ours: str
    theirs: tuple[str, ...]
    form: Transform
    gated: bool | None  # written so for gated MLPs, or for others; None: for both


@dataclass(frozen=True)
class Layout:
    """A library's names and shapes of the tensors."""

    name: str
    title: str  # the name in messages
    anchor: str  # the patch projection's weight; the text before it in a file's names is the prefix
    rules: tuple[Rule, ...]  # of a tensor, the first whose sources exist is read, and the first that suits is written
    marks: Sequence[str] = ()  # names (regular expressions) that must exist in addition to the anchor
    inner: Sequence[str] = ()  # prefixes of the body's names, but not of the heads', in models with a head
    spellings: Mapping[str, str] = field(default_factory=dict)  # pattern -> names in older or newer releases
    # the tokens that the position table covers; None: inferred from its length
    positions: Literal["all", "class", "patches"] | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)  # pattern of tensors without a place in our model -> why
    # name -> shape, with "D" for the width, of tensors that the library requires and a classifier never reads
    zeros: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)  # arguments of our model that follow from the layout

    def heads(self) -> set[str]:
        """Names of the classification heads' tensors."""
        return {name for rule in self.rules if rule.ours.startswith("head") for name in rule.theirs}
