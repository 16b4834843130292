"""Rewrite tensors for libraries that store the same function differently.

A token's position embedding may be added to the token, a missing one is zeros, sines become a table, and a norm after
[cls] pooling is the norm before it. The outputs are equal.
"""

from typing import cast

import torch
from torch import Tensor

from vitlab.config.schema import Node
from vitlab.export.checkpoint import ExportModel
from vitlab.models.vit import VisionTransformer
from vitlab.weights.match import TOKENS, prefix_tokens
from vitlab.weights.resample import change_positions


def network_tensors(trained: ExportModel, *, covered: int | None) -> dict[str, Tensor]:
    """The network's tensors, with a position table for the first `covered` prefix tokens and all patches.

    With `covered=None` the table stays as it is, or absent.
    """
    network = cast(VisionTransformer, trained.network)
    state = dict(network.state_dict())
    if trained.arguments["pool"] == "cls" and "fc_norm.weight" in state:
        state |= {f"norm.{part}": state.pop(f"fc_norm.{part}") for part in ("weight", "bias")}
    table = network.pos_embed
    if covered is None:
        return state if table is None else {**state, "pos_embed": table.detach()}
    grid = network.grid
    if table is None:
        table = torch.zeros(1, grid[0] * grid[1], trained.arguments["dim"])
    tokens = {name: state[name] for name in TOKENS if name in state}
    slots = prefix_tokens({name: token.shape for name, token in tokens.items()})
    return state | change_positions(tokens, table.detach(), old=grid, new=grid, slots=slots, covered=covered)


def unit_scales(arguments: Node) -> dict[str, Tensor]:
    """LayerScale factors of 1, for libraries whose blocks always have LayerScale."""
    names = [f"blocks.{i}.ls{n}.gamma" for i in range(arguments["depth"]) for n in (1, 2)]
    return {name: torch.ones(arguments["dim"]) for name in names}
