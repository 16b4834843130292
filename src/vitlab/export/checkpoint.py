"""A run's network to be exported, with its constructor's arguments."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitlab.config.schema import Node
from vitlab.evaluation.checkpoint import CheckpointWeights
from vitlab.evaluation.trained_model import TrainedModel, load_checkpoint_model


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


def random_images(trained: ExportModel, count: int, *, seed: int = 0) -> Tensor:
    """Random uint8 images [count, C, H, W], the same for each seed."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, trained.channels, *trained.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
