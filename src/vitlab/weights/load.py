"""Weights from anywhere into a model of ours, with a report of what became of each tensor.

    weights = open_weights("timm:vit_base_patch16_224")                 of what network they are
    network, report = pretrained(weights)                               that network, with them
    network, report = pretrained(weights, image_size=384, num_classes=10)       or one that differs from it

The model is made on the meta device and its tensors are assigned one by one: no more is in memory than the model, one
tensor, and what the system keeps of the file.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.models.vit import VisionTransformer
from vitlab.weights.locate import clear_cache
from vitlab.weights.match import StateDictMatcher
from vitlab.weights.open import WeightSource, format_source, open_weights
from vitlab.weights.report import Report, format_names

NO_HEAD = (
    "without a probe the weights' own head is scored, and {source} would get a new one: {why}; take data with the "
    "weights' classes, or probe=linear or knn"
)


class IncompatibleWeights(ValueError):
    """Weights that are not of the model they were meant for, or that nothing may be loaded from."""


def load_network(
    arguments: Mapping[str, Any],
    source: str,
    *,
    strict: bool = True,
    part: str | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> tuple[VisionTransformer, Report]:
    """A model of these arguments, with the weights behind a source (see `places`).

    Args:
        arguments: Of `VisionTransformer`; what they leave out has the signature's default.
        source: Where the weights are.
        strict: Whether what doesn't fit is an error; else it is initialised anew, or left out.
        part: Which network, where a file holds several: `ema`, `raw`, or a name in it.
        image_size: What the weights were trained on, where nothing beside them tells and no square grid fits.

    Raises:
        DoesNotFit: they are not of this model.
        files.CannotRead: there are none, or they can't be read.
        allowlist.NotTrusted: the file holds more than weights.
    """
    weights = open_weights(source, part=part, image_size=image_size, asked=arguments)
    loaded = load_pretrained(weights, strict=strict, whole=True, **arguments)
    clear_cache()
    return loaded


def preview_report(arguments: Mapping[str, Any], weights: WeightSource) -> Report:
    """What would become of weights in a model of these arguments, as far as names and shapes tell; classes that it
    leaves out are theirs.
    """
    theirs = {key: weights.architecture.arguments[key] for key in ("num_classes", "in_channels")}
    given = {**theirs, **arguments}
    with torch.device("meta"):
        network = VisionTransformer(**given)
    return StateDictMatcher(network, given, weights, "").report


def load_pretrained(
    weights: WeightSource, *, strict: bool = True, whole: bool = False, **arguments: Any
) -> tuple[VisionTransformer, Report]:
    """The model that weights are of, with them; `arguments` of `VisionTransformer` go before what the weights say.

    `whole`: the arguments are all that is said of the model, and what they leave out has the signature's default.
    Without `strict`, what doesn't fit is initialised anew or left out, and told.

    Raises:
        DoesNotFit: tensors are missing, unused or of another shape, and the arguments don't explain it (with `strict`);
            or they hold NaN or infinity.
    """
    given = arguments if whole else {**weights.architecture.arguments, **arguments}
    source = weights.opened.source
    with torch.device("meta"):
        network = VisionTransformer(**given)
    fit = StateDictMatcher(network, given, weights, f"weights from {format_source(weights)}")
    fit.report.prepared = weights.preprocessing
    if fit.report.problems and strict:
        lines = "".join(f"\n  - {problem}" for problem in fit.report.problems)
        raise IncompatibleWeights(
            f"model.weights={source}, read as {fit.weights.found.layout.title}, doesn't fit the model; model=auto "
            f"takes the model from the weights, weights.strict=false loads what fits:{lines}"
        )
    fresh, bad = FreshInit(given), []
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        value = torch.empty(tensor.shape)
        if name in fit.readers:
            value.copy_(fit.readers[name]())
            # the sum needs no memory, and is not finite where a number isn't (or where it overflows)
            if not value.sum().isfinite() and not value.isfinite().all():
                bad += weights.plan.made[name][1] if name in weights.plan.made else [name]
            fit.report.numbers += value.numel()
        else:
            value.copy_(fresh(name))
        assign_tensor(network, name, value)
    if bad:
        raise IncompatibleWeights(
            f"model.weights={source}: NaN or infinity in {format_names(bad)}; these weights can't be used"
        )
    return network, fit.report


class FreshInit:
    """Tensors as a new model has them, for what the weights lack."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = {**arguments, "depth": 1}  # blocks are initialised alike, each by numbers of its own
        self.models: dict[str, VisionTransformer] = {}

    def __call__(self, name: str) -> Tensor:
        """The tensor of a name; models of one block are made as they are needed."""
        parts = name.split(".")
        block = parts[1] if parts[0] == "blocks" else ""
        if block not in self.models:
            self.models[block] = VisionTransformer(**self.arguments)
        tensors = dict([*self.models[block].named_parameters(), *self.models[block].named_buffers()])
        return tensors[".".join(["blocks", "0", *parts[2:]]) if block else name].detach()


def assign_tensor(network: nn.Module, name: str, value: Tensor) -> None:
    """Puts a tensor in the place of one on the meta device."""
    path, _, last = name.rpartition(".")
    module = network.get_submodule(path)
    if last in module._parameters:
        module._parameters[last] = nn.Parameter(value)
    else:
        module._buffers[last] = value
