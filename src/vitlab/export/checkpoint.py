"""A run's network to be exported, with its constructor's arguments, and its tensors as other libraries store them.

A token's position embedding may be added to the token, a missing one is zeros, sines become a table, and a norm after
[cls] pooling is the norm before it. The outputs are equal.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from vitlab.config.schema import Node
from vitlab.evaluation.checkpoint import CheckpointWeights
from vitlab.evaluation.trained_model import TrainedModel, load_checkpoint_model
from vitlab.models.vit import VisionTransformer
from vitlab.weights.match import TOKENS, prefix_tokens
from vitlab.weights.resample import change_positions


@dataclass(frozen=True, eq=False, kw_only=True)
class ExportModel(TrainedModel):
    """A network to export, in float32 on the CPU."""

    classes: tuple[str, ...]
    weights: CheckpointWeights
    arguments: Node  # of its constructor, including defaults and those inferred from the data
    data: Node  # `DataModule.fingerprint` of the training data


def load_export_model(weights: CheckpointWeights) -> ExportModel:
    """Build the network with its weights, classes and preprocessing."""
    trained = load_checkpoint_model(weights)
    inferred = {"num_classes": len(trained.classes or ()), "in_channels": trained.channels}
    arguments, data = {**weights.arguments, **inferred}, weights.content["vitlab"]["data"]
    return ExportModel(**vars(trained), weights=weights, arguments=arguments, data=data)


def color_weights(weights: CheckpointWeights) -> CheckpointWeights:
    """The weights of a network of gray images, for RGB: three equal channels give the logits of one."""
    name, identity = "patch_embed.proj.weight", weights.content["vitlab"]
    state = {**weights.state, name: weights.state[name].float().expand(-1, 3, -1, -1) / 3}
    thrice = {key: identity["preprocessing"][key] * 3 for key in ("mean", "std")}
    content = {**weights.content, "vitlab": {**identity, "preprocessing": {**identity["preprocessing"], **thrice}}}
    return weights._replace(state=state, content=content, arguments={**weights.arguments, "in_channels": 3})


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
