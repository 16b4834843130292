"""What is exported: a run's network, and all that somebody who uses it elsewhere has to know.

weights = load_weights(run, "best", None)      what a checkpoint holds; nothing but names and shapes is read yet
trained = load(weights)                        the network, in float32 on the CPU, with classes and preprocessing
"""

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
from vitlab.training import build

Kind = Literal["vit", "timm", "other"]
NETWORK = "network."  # what the names of the network's tensors begin with in a checkpoint
STATES = {"ema": "state_dict", "raw": "current_model_state"}  # of a checkpoint that has both: Lightning's names
NOT_BUILT = "pretrained"  # an argument that would fetch other weights, which these then replace


class CheckpointWeights(NamedTuple):
    """A checkpoint's network, as it lies in the file."""

    run: Path
    file: Path
    chosen: str | None  # ema or raw, where the checkpoint has both
    state: dict[str, Tensor]  # read when they are used
    content: dict[str, Any]
    config: Node  # of the run that the checkpoint is of
    kind: Kind
    arguments: Node  # of the network's constructor, all of them


@dataclass(frozen=True, eq=False)
class ExportModel:
    """A network to be used elsewhere.

    Attributes:
        network: In float32 on the CPU, in evaluation mode.
        arguments: Of its constructor, defaults and measured ones included.
        classes: Names, in the order of the logits.
        loss: What the logits were trained by: `softmax`, or `sigmoid` for each class by itself.
        data: What images it was trained on (`DataModule.fingerprint`).
    """

    weights: CheckpointWeights
    network: nn.Module
    arguments: Node
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bicubic", "bilinear"]
    crop_fraction: float | None
    loss: Literal["softmax", "sigmoid"]
    data: Node
    results: Node

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return len(self.mean)

    @property
    def preprocessing(self) -> Node:
        """How images are prepared, as a run's checkpoint has it."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "crop_fraction": self.crop_fraction,
        }

    def prepare(self) -> Prepare:
        """uint8 images to what the network sees."""
        return Prepare(image_size=self.image_size, mean=self.mean, std=self.std, interpolation=self.interpolation)


def load_weights(run: Path, checkpoint: str, part: str | None) -> CheckpointWeights:
    """The network in a run's checkpoint of a name.

    `part`: `ema` or `raw` where the checkpoint has both; None: those that were tested, so the averages.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        OSError: the checkpoint is damaged.
        ValueError: it has no such weights.
        allowlist.NotTrusted: it holds more than weights.
    """
    file = folder.checkpoint_file(run, checkpoint)
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint={checkpoint}: {run}/checkpoints has no {file.name}")
    safe_load.verify_checkpoint(file)
    content = safe_load.load_checkpoint(file)
    both = STATES["raw"] in content
    if part is not None and not both:
        raise ValueError(
            f"part={part}: {file} has one kind of weights alone: its run averaged none (callbacks=ema); leave part out"
        )
    chosen = (part or "ema") if both else None
    state = content[STATES[chosen] if chosen else "state_dict"]
    config = (content.get("vitlab") or {}).get("config") or folder.read_config(run)
    network = {name.removeprefix(NETWORK): tensor for name, tensor in state.items() if name.startswith(NETWORK)}
    kind, arguments = constructor_arguments(config["model"], network)
    return CheckpointWeights(run, file, chosen, network, content, config, kind, arguments)


def constructor_arguments(node: Node, state: dict[str, Tensor]) -> tuple[Kind, Node]:
    """What a network is, and the arguments of its constructor: what the configuration leaves to the data, too."""
    allowlist.require_allowed(node, "model")  # the checkpoint's word for it, which `checks` has not seen
    target = resolve(node["_target_"])
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in node.items() if k[0] != "_" and k != NOT_BUILT}
    if target is VisionTransformer:
        usual = {k: v for k, v in defaults(node["_target_"]).items() if k[0] != "_"}
        measured = {
            "num_classes": state["head.weight"].shape[0],
            "in_channels": state["patch_embed.proj.weight"].shape[1],
        }
        return "vit", usual | given | measured
    return ("timm" if target.__module__ == "vitlab.models.timm_model" else "other"), given


def load_export_model(weights: CheckpointWeights) -> ExportModel:
    """The network with its weights, and what goes with it.

    Where the checkpoint doesn't say how images were prepared (before vitlab wrote that down), the data is loaded.
    """
    identity = weights.content.get("vitlab") or {}
    data, preprocessing = identity.get("data"), identity.get("preprocessing")
    if not data or not preprocessing:
        datamodule = build.build_data(folder.data_without_scan(weights.config["data"], weights.run))
        data, preprocessing = datamodule.fingerprint(), datamodule.preprocessing()
    measured = {"num_classes": len(data["classes"]), "in_channels": len(preprocessing["mean"])}
    model = {k: v for k, v in weights.config["model"].items() if k != NOT_BUILT}
    network = instantiate.build_object(model, **measured)
    network.load_state_dict(weights.state)
    crop = preprocessing["crop_fraction"]
    return ExportModel(
        weights=weights,
        network=network.float().eval().requires_grad_(False),
        arguments={**weights.arguments, **measured},
        classes=tuple(data["classes"]),
        image_size=pair(weights.config["image_size"]),
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        interpolation=preprocessing["interpolation"],
        crop_fraction=None if crop is None else float(crop),
        loss=(weights.config.get("classifier") or {}).get("loss", "softmax"),
        data=data,
        results=folder.read_results(weights.run),
    )


def comparison_images(trained: ExportModel, count: int, *, seed: int = 0) -> Tensor:
    """Made-up images to compare networks on: uint8 [count, C, H, W], noise of every brightness and contrast."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, trained.channels, *trained.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
