"""Load weights of any source into our model, with a report of every tensor.

    weights = open_weights("timm:vit_base_patch16_224")
    network, report = load_pretrained(weights)                                        # their own network
    network, report = load_pretrained(weights, image_size=384, num_classes=10)        # one that differs from it

The model is built on the meta device and its tensors are assigned one by one: memory holds the model, one tensor, and
the system's mapping of the file.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.models.vit import VisionTransformer
from vitlab.weights.locate import clear_cache
from vitlab.weights.match import StateDictMatcher
from vitlab.weights.open import WeightSource, open_weights
from vitlab.weights.report import Report, format_names

NO_HEAD = (
    "without a probe the weights' own head is scored, but {source} would get a new one: {why}; take data with the "
    "weights' classes, or probe=linear or knn"
)


class IncompatibleWeights(ValueError):
    """Weights that don't fit the model, or that hold NaN or infinity."""


def load_network(
    arguments: Mapping[str, Any],
    source: str,
    *,
    strict: bool = True,
    part: str | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> tuple[VisionTransformer, Report]:
    """A model of these arguments, with the weights of a source (see `locate`).

    Args:
        arguments: Of `VisionTransformer`; the others have the signature's defaults.
        source: Where the weights are stored.
        strict: Whether a tensor that doesn't fit is an error, instead of being initialized or skipped.
        part: The network in a file with several: `ema`, `raw`, or a name in the file.
        image_size: The image size in training, if the configuration lacks it and positions have no square grid.

    Raises:
        IncompatibleWeights: the weights don't fit the model.
        files.UnreadableWeights: there are none, or they can't be read.
        allowlist.NotTrusted: the file holds more than weights.
    """
    weights = open_weights(source, part=part, image_size=image_size, requested=arguments)
    loaded = load_tensors(weights, dict(arguments), strict=strict)
    clear_cache()
    return loaded


def load_pretrained(
    weights: WeightSource, *, strict: bool = True, **arguments: Any
) -> tuple[VisionTransformer, Report]:
    """The network of the weights, with them; `arguments` of `VisionTransformer` override its own.

    Raises `IncompatibleWeights` like `load_network`.
    """
    return load_tensors(weights, {**weights.architecture.arguments, **arguments}, strict=strict)


def preview_report(arguments: Mapping[str, Any], weights: WeightSource) -> Report:
    """The report of a load by names and shapes alone; classes and channels default to those of the weights."""
    own = {key: weights.architecture.arguments[key] for key in ("num_classes", "in_channels")}
    arguments = {**own, **arguments}
    with torch.device("meta"):
        network = VisionTransformer(**arguments)
    return StateDictMatcher(network, arguments, weights, "").report


def load_tensors(weights: WeightSource, arguments: dict[str, Any], *, strict: bool) -> tuple[VisionTransformer, Report]:
    source = weights.files.source
    with torch.device("meta"):
        network = VisionTransformer(**arguments)
    matcher = StateDictMatcher(network, arguments, weights, f"weights from {weights.title()}")
    report = matcher.report
    report.preprocessing = weights.preprocessing
    if report.problems and strict:
        lines = "".join(f"\n  - {problem}" for problem in report.problems)
        raise IncompatibleWeights(
            f"model.weights={source}, read as {weights.network.layout.title}, doesn't fit the model; model=auto "
            f"takes the model from the weights, weights.strict=false loads what fits:{lines}"
        )
    initial, bad = InitialTensors(arguments), []
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        value = torch.empty(tensor.shape)
        if name in matcher.readers:
            value.copy_(matcher.readers[name]())
            # the sum needs no memory; it isn't finite if a number isn't, or if it overflows
            if not value.sum().isfinite() and not value.isfinite().all():
                bad += weights.plan.sources[name][1] if name in weights.plan.sources else [name]
            report.numbers += value.numel()
        else:
            value.copy_(initial.tensor(name))
        assign_tensor(network, name, value)
    if bad:
        raise IncompatibleWeights(
            f"model.weights={source}: NaN or infinity in {format_names(bad)}; these weights can't be used"
        )
    return network, report


class InitialTensors:
    """Tensors of a newly initialized model, built one block at a time."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = {**arguments, "depth": 1}  # blocks are initialized alike, each with its own draws
        self.models: dict[str, VisionTransformer] = {}

    def tensor(self, name: str) -> Tensor:
        parts = name.split(".")
        block = parts[1] if parts[0] == "blocks" else ""
        if block not in self.models:
            self.models[block] = VisionTransformer(**self.arguments)
        tensors = dict([*self.models[block].named_parameters(), *self.models[block].named_buffers()])
        return tensors[".".join(["blocks", "0", *parts[2:]]) if block else name].detach()


def assign_tensor(network: nn.Module, name: str, value: Tensor) -> None:
    """Replace a tensor on the meta device."""
    path, _, last = name.rpartition(".")
    module = network.get_submodule(path)
    if last in module._parameters:
        module._parameters[last] = nn.Parameter(value)
    else:
        module._buffers[last] = value
