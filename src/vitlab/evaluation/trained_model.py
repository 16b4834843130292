"""A trained network with its classes and preprocessing, from a run, an export, or weights of others.

model = vitlab.load("runs/NAME/STAMP")          or an export's folder, model.onnx, timm:NAME, hf:NAME, a file
model.predict("photos").top(5)                  paths, folders, Pillow's images, arrays, tensors
model.embed("photos"), model.attention("cat.jpg"), model.network, model.transform
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from vitlab.config import instantiate
from vitlab.config.schema import Node
from vitlab.data.augment import Prepare
from vitlab.data.dataset import center_crop
from vitlab.evaluation import images as user_images
from vitlab.evaluation.attention import trace
from vitlab.evaluation.checkpoint import NOT_BUILT, CheckpointWeights, load_weights
from vitlab.evaluation.features import Extractor, Kind
from vitlab.evaluation.graph_network import GraphNetwork
from vitlab.evaluation.images import Images
from vitlab.models.vit_validation import pair
from vitlab.runs import folder
from vitlab.weights.configuration import class_names, config_loss, loss_kind, preprocessing
from vitlab.weights.files import UnreadableWeights
from vitlab.weights.layouts import LAYOUTS
from vitlab.weights.load import load_pretrained
from vitlab.weights.locate import clear_cache, locate_weights
from vitlab.weights.open import open_weights

log = logging.getLogger(__name__)

TEMPERATURE = "evaluation/temperature.json"  # of a run's best weights: {"temperature": T}


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities of images, float32 [N, classes] on the CPU."""

    probabilities: Tensor
    classes: tuple[str, ...] | None

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """Each image's `k` most probable classes (numbers, if they have no names) with their probabilities."""
        values, indices = self.probabilities.topk(min(k, self.probabilities.shape[1]), dim=1)
        names = self.classes or [str(i) for i in range(self.probabilities.shape[1])]
        pairs = zip(indices.tolist(), values.tolist(), strict=True)
        return [[(names[i], value) for i, value in zip(*row, strict=True)] for row in pairs]


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedModel:
    """A network in evaluation mode, float32, with all that a prediction needs."""

    network: nn.Module
    classes: tuple[str, ...] | None  # names, in the order of the logits
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop_fraction: float | None = None  # None: images are resized to `image_size` without a crop
    loss: Literal["softmax", "sigmoid"] = "softmax"
    temperature: float = 1.0  # divides the logits

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    @property
    def has_head(self) -> bool:
        return getattr(self.network, "num_classes", None) != 0

    @property
    def preprocessing(self) -> Node:
        """The preprocessing as in a checkpoint."""
        normalization = {"mean": list(self.mean), "std": list(self.std)}
        return {**normalization, "interpolation": self.interpolation, "crop_fraction": self.crop_fraction}

    def prepare(self) -> Prepare:
        """A module that turns uint8 images into the network's input."""
        return Prepare(image_size=self.image_size, mean=self.mean, std=self.std, interpolation=self.interpolation)

    def crop(self, pixels: Tensor) -> Tensor:
        """The part of an image uint8 [..., C, H, W] that the network sees, of `image_size`."""
        mode = v2.InterpolationMode(self.interpolation)
        if self.crop_fraction is not None:
            return center_crop(pixels, self.image_size, self.crop_fraction, mode)
        resized: Tensor = v2.functional.resize(pixels, list(self.image_size), mode, antialias=True)
        return resized

    def transform(self, image: Any, device: torch.device | str | None = None) -> Tensor:
        """The network's input, float [C, H, W], of an image, or of a batch; a float tensor must be one already."""
        pixels = user_images.pixels(image, self.channels).to(device)
        if pixels.is_floating_point():
            if tuple(pixels.shape[-3:]) != (expected := (self.channels, *self.image_size)):
                raise ValueError(f"a float tensor must be the network's input, {list(expected)}: {list(pixels.shape)}")
            return pixels
        cropped = self.crop(pixels)
        prepared: Tensor = self.prepare().to(device)(cropped.view(-1, *cropped.shape[-3:]))
        return prepared.view_as(cropped)

    def batches(self, images: Images, batch_size: int) -> Iterator[Tensor]:
        """The network's inputs, at most `batch_size` at a time, on its device."""
        for is_batch, group in groupby(user_images.flat_images(images), lambda image: getattr(image, "ndim", 3) == 4):
            if is_batch:
                for each in group:
                    for start in range(0, len(each), batch_size):
                        yield self.transform(each[start : start + batch_size], self.device)
            else:
                inputs = map(self.transform, group)
                while few := list(islice(inputs, batch_size)):
                    yield torch.stack(few).to(self.device)

    def probabilities(self, logits: Tensor) -> Tensor:
        scaled = logits.float() if self.temperature == 1 else logits.float() / self.temperature
        return scaled.softmax(dim=-1) if self.loss == "softmax" else scaled.sigmoid()

    @torch.inference_mode()
    def predict(self, images: Images, *, batch_size: int = 64) -> Predictions:
        """The probabilities of images: paths, folders, images of Pillow, uint8 arrays or tensors, or lists of them."""
        if not self.has_head:
            raise ValueError("these weights have no head, so there are no classes to predict; use embed")
        parts = [self.probabilities(self.network(batch)).cpu() for batch in self.batches(images, batch_size)]
        return Predictions(concatenate(parts), self.classes)

    @torch.inference_mode()
    def embed(self, images: Images, *, kind: Kind = "pooled", batch_size: int = 64) -> Tensor:
        """Features [N, D]: the head's input, or another kind of `vitlab.evaluation.features.Extractor`."""
        if isinstance(self.network, GraphNetwork):
            raise TypeError("an ONNX file has logits alone, no features; embed with the run or another export")
        extractor = Extractor(self.network, kind)
        return concatenate([extractor(batch).float().cpu() for batch in self.batches(images, batch_size)])

    @torch.inference_mode()
    def attention(self, image: Any) -> Tensor:
        """Attention weights [depth, heads, N, N] of an image; row i, of query i, sums to 1."""
        return torch.cat(trace(self.network, self.transform(image)[None].to(self.device)).maps).cpu()


def concatenate(parts: list[Tensor]) -> Tensor:
    if not parts:
        raise ValueError("there are no images")
    return torch.cat(parts)


def load_model(
    source: str | Path, *, checkpoint: str = "best", part: str | None = None, device: str | torch.device | None = None
) -> TrainedModel:
    """Load a trained network with its classes and preprocessing.

    Args:
        source: Folder of a run or of an export, an ONNX file that vitlab exported, `timm:NAME`, `hf:NAME`, or a file or
            folder of weights.
        checkpoint: Of a run: `best`, `last` or another name.
        part: Which weights of a file with several, such as `ema` or `raw`. None: the tested ones, the averages.
        device: Of the network; None: the CPU.

    Raises `OSError` and `ValueError` if there is no such network, `allowlist.NotTrusted` if loading it would run code.
    """
    path = Path(source).expanduser()
    if (path / folder.CONFIG).is_file():
        model = load_checkpoint_model(load_weights(path, checkpoint, part))
    elif path.suffix == ".onnx" or (path / "model.onnx").is_file():
        model = load_onnx_model(path if path.suffix == ".onnx" else path / "model.onnx")
    else:
        model = load_weights_model(str(source), part)
    model.network.to(device or "cpu")
    return model


def load_checkpoint_model(weights: CheckpointWeights) -> TrainedModel:
    """The network of a run's checkpoint, with the temperature that an evaluation has fitted."""
    identity = weights.content["vitlab"]
    classes, preprocessing = identity["data"]["classes"], identity["preprocessing"]
    inferred = {"num_classes": len(classes), "in_channels": len(preprocessing["mean"])}
    network = instantiate.build_object({k: v for k, v in weights.config["model"].items() if k != NOT_BUILT}, **inferred)
    network.load_state_dict(weights.state)
    known: Node = {"loss": config_loss(weights.config)}
    if weights.file.stem == "best" and weights.chosen != "raw" and (file := weights.run / TEMPERATURE).is_file():
        known["temperature"] = json.loads(file.read_text())["temperature"]
    return trained_model(network, classes, pair(weights.config["image_size"]), preprocessing, **known)


def load_weights_model(source: str, part: str | None) -> TrainedModel:
    """A network of weights, with what the configuration next to them says about classes and preprocessing."""
    files = locate_weights(source)
    cfg = files.config.get("pretrained_cfg") or {}
    network: Any
    try:
        weights = open_weights(source, part=part)
        network, report = load_pretrained(weights)
        known, size = report.preprocessing, network.image_size
    except UnreadableWeights:
        if files.timm_name is None:
            raise
        import timm  # which has more than Vision Transformers

        network = timm.create_model(source.removeprefix("timm:"), pretrained=True)
        known, size = preprocessing(files, LAYOUTS["timm"]), tuple(cfg["input_size"][1:])
    finally:
        clear_cache()
    if known.mean is None:
        log.warning("%s has no record of its preprocessing: images are scaled to -1 .. 1, and not cropped", source)
    squash = cfg.get("crop_mode") == "squash" or (files.preprocessor and not files.preprocessor.get("do_center_crop"))
    half = [0.5] * getattr(network, "in_channels", 3)
    settings: Node = {"mean": half, "std": half, "interpolation": "bicubic", **known.settings()}
    settings["crop_fraction"] = None if squash else known.crop_fraction
    names, export = class_names(files, network.num_classes), Path(source) / "export.json"
    divisor = json.loads(export.read_text()).get("temperature", 1.0) if export.is_file() else 1.0
    return trained_model(network, names, size, settings, loss=loss_kind(files), temperature=divisor)


def load_onnx_model(file: Path) -> TrainedModel:
    """An ONNX file of vitlab; its metadata are those of `vitlab.export.graph`."""
    network = GraphNetwork(file)
    known = {"interpolation": "bicubic", "crop_fraction": None, "loss": "softmax", **network.metadata}
    others = {"loss": known["loss"], "temperature": 1.0 if network.folded else known.get("temperature", 1.0)}
    if network.folded:  # it normalizes
        known |= {"mean": [0.0] * network.channels, "std": [1.0] * network.channels}
    return trained_model(network, known["classes"], pair(known["image_size"]), known, **others)


def trained_model(
    network: nn.Module, classes: Sequence[str] | None, image_size: tuple[int, int], preprocessing: Node, **others: Any
) -> TrainedModel:
    crop, names = preprocessing["crop_fraction"], None if classes is None else tuple(classes)
    known: Node = {name: tuple(preprocessing[name]) for name in ("mean", "std")}
    known |= {"interpolation": preprocessing["interpolation"], "crop_fraction": None if crop is None else float(crop)}
    network = network.float().eval().requires_grad_(False)
    return TrainedModel(network=network, classes=names, image_size=image_size, **known, **others)
