"""Load a run's network for an export, with its classes and preprocessing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from vitlab.config import allowlist, instantiate
from vitlab.config.schema import Node, resolve
from vitlab.config.signatures import defaults
from vitlab.data.augment import Prepare
from vitlab.models.vit import VisionTransformer
from vitlab.models.vit_validation import pair
from vitlab.runs import folder
from vitlab.storage import safe_load

Kind = Literal["vit", "timm", "other"]
NETWORK = "network."  # prefix of the network's tensors in a checkpoint
STATES = {"ema": "state_dict", "raw": "current_model_state"}  # Lightning's keys in a checkpoint with averages
NOT_BUILT = "pretrained"  # an argument that would download weights, which the checkpoint's would replace


class CheckpointWeights(NamedTuple):
    """The network's weights in a checkpoint."""

    run: Path
    file: Path
    chosen: str | None  # ema or raw; None if the checkpoint has no averages
    state: dict[str, Tensor]
    content: dict[str, Any]
    config: Node  # of the run
    kind: Kind
    arguments: Node  # of the network's constructor, including defaults


@dataclass(frozen=True, eq=False)
class ExportModel:
    """A network to export."""

    weights: CheckpointWeights
    network: nn.Module  # in float32 on the CPU, in evaluation mode
    arguments: Node  # of its constructor, including defaults and those inferred from the data
    classes: tuple[str, ...]  # names, in the order of the logits
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bicubic", "bilinear"]
    crop_fraction: float | None
    loss: Literal["softmax", "sigmoid"]
    data: Node  # `DataModule.fingerprint` of the training data

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def preprocessing(self) -> Node:
        """The preprocessing as in a checkpoint."""
        normalization = {"mean": list(self.mean), "std": list(self.std)}
        return {**normalization, "interpolation": self.interpolation, "crop_fraction": self.crop_fraction}

    def prepare(self) -> Prepare:
        """A module that turns uint8 images into the network's input."""
        return Prepare(image_size=self.image_size, mean=self.mean, std=self.std, interpolation=self.interpolation)


def load_weights(run: Path, checkpoint: str, part: str | None) -> CheckpointWeights:
    """Load the network's weights from a run's checkpoint; tensors are read on first use.

    `part`: `ema` or `raw`, in a checkpoint with both; None: the tested ones, the averages if there are any. Raises
    `OSError` for a missing or damaged file, `ValueError` without averages, `allowlist.NotTrusted` for other classes.
    """
    file = folder.checkpoint_file(run, checkpoint)
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint={checkpoint}: {run}/checkpoints has no {file.name}")
    safe_load.verify_checkpoint(file)
    content = safe_load.load_checkpoint(file)
    both = STATES["raw"] in content
    if part is not None and not both:
        raise ValueError(
            f"part={part}: {file} has only one set of weights (averages need callbacks=ema); leave part out"
        )
    chosen = (part or "ema") if both else None
    state = content[STATES[chosen] if chosen else "state_dict"]
    if not {"config", "data", "preprocessing"} <= (content.get("vitlab") or {}).keys():
        raise ValueError(f"checkpoint={checkpoint}: {file} has no configuration, classes and preprocessing of vitlab")
    config = content["vitlab"]["config"]
    network = {name.removeprefix(NETWORK): tensor for name, tensor in state.items() if name.startswith(NETWORK)}
    kind, arguments = constructor_arguments(config["model"], network)
    return CheckpointWeights(run, file, chosen, network, content, config, kind, arguments)


def constructor_arguments(node: Node, state: dict[str, Tensor]) -> tuple[Kind, Node]:
    """The kind of a network and its constructor's arguments, including those inferred from the data."""
    allowlist.require_allowed(node, "model")  # a checkpoint's configuration isn't checked before the start
    target = resolve(node["_target_"])
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in node.items() if k[0] != "_" and k != NOT_BUILT}
    if target is VisionTransformer:
        usual = {k: v for k, v in defaults(node["_target_"]).items() if k[0] != "_"}
        inferred = {
            "num_classes": state["head.weight"].shape[0],
            "in_channels": state["patch_embed.proj.weight"].shape[1],
        }
        return "vit", usual | given | inferred
    return ("timm" if target.__module__ == "vitlab.models.timm_model" else "other"), given


def load_export_model(weights: CheckpointWeights) -> ExportModel:
    """Build the network with its weights, classes and preprocessing."""
    data, preprocessing = (weights.content["vitlab"][key] for key in ("data", "preprocessing"))
    inferred = {"num_classes": len(data["classes"]), "in_channels": len(preprocessing["mean"])}
    model = {k: v for k, v in weights.config["model"].items() if k != NOT_BUILT}
    network = instantiate.build_object(model, **inferred)
    network.load_state_dict(weights.state)
    crop = preprocessing["crop_fraction"]
    return ExportModel(
        weights=weights,
        network=network.float().eval().requires_grad_(False),
        arguments={**weights.arguments, **inferred},
        classes=tuple(data["classes"]),
        image_size=pair(weights.config["image_size"]),
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        interpolation=preprocessing["interpolation"],
        crop_fraction=None if crop is None else float(crop),
        loss="softmax" if (weights.config.get("classifier") or {}).get("loss", "softmax") == "softmax" else "sigmoid",
        data=data,
    )


def random_images(trained: ExportModel, count: int, *, seed: int = 0) -> Tensor:
    """Random uint8 images [count, C, H, W], the same for each seed."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, trained.channels, *trained.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
