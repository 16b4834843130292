"""Load weights of any source into our model, with a report of every tensor.

    network, report = load_pretrained(open_weights("timm:vit_base_patch16_224"), image_size=384, num_classes=10)

The model is built on the meta device and its tensors are assigned one by one: memory holds the model, one tensor, and
the system's mapping of the file.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.config.printable import format_names
from vitlab.models.vit import VisionTransformer
from vitlab.weights.locate import clear_cache
from vitlab.weights.match import Report, StateDictMatcher
from vitlab.weights.open import WeightSource, open_weights

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

    Raises `IncompatibleWeights` if the weights don't fit the model, and the errors of `open_weights`.
    """
    weights = open_weights(source, part=part, image_size=image_size, requested=arguments)
    network, report = load_tensors(weights, dict(arguments), strict=strict)
    clear_cache()
    return network, report


def load_pretrained(
    weights: WeightSource, *, strict: bool = True, **arguments: Any
) -> tuple[VisionTransformer, Report]:
    """The network of the weights, with them; `arguments` of `VisionTransformer` override its own."""
    return load_tensors(weights, {**weights.architecture.arguments, **arguments}, strict=strict)


def preview_report(arguments: Mapping[str, Any], weights: WeightSource) -> Report:
    """The report of a load by names and shapes alone; classes and channels default to those of the weights."""
    arguments = {**{key: weights.architecture.arguments[key] for key in ("num_classes", "in_channels")}, **arguments}
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
    models, bad = dict[str, VisionTransformer](), list[str]()
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        value = torch.empty(tensor.shape)
        if name in matcher.readers:
            value.copy_(matcher.readers[name]())
            # the sum needs no memory; it isn't finite if a number isn't, or if it overflows
            if not value.sum().isfinite() and not value.isfinite().all():
                bad += weights.plan.sources[name][1] if name in weights.plan.sources else [name]
            report.numbers += value.numel()
        else:
            value.copy_(initial_tensor(name, arguments, models))
        path, _, last = name.rpartition(".")
        module = network.get_submodule(path)
        if last in module._parameters:
            module._parameters[last] = nn.Parameter(value)
        else:
            module._buffers[last] = value
    if bad:
        raise IncompatibleWeights(f"model.weights={source}: NaN or infinity in {format_names(bad)}; take other weights")
    return network, report


def initial_tensor(name: str, arguments: dict[str, Any], models: dict[str, VisionTransformer]) -> Tensor:
    """A tensor of a new model; `models` have a single block each, as blocks are initialized alike."""
    parts = name.split(".")
    block = parts[1] if parts[0] == "blocks" else ""
    if block not in models:
        models[block] = VisionTransformer(**{**arguments, "depth": 1})
    tensors = dict([*models[block].named_parameters(), *models[block].named_buffers()])
    return tensors[".".join(["blocks", "0", *parts[2:]]) if block else name].detach()
