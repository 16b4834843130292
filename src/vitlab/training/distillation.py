"""Distillation: the network also learns from a teacher's logits of the same augmented images (DeiT, arXiv 2012.12877).

soft   the Kullback-Leibler divergence from the teacher's probabilities at a temperature T, times T^2, as the mean over
       images and classes (facebookresearch/deit losses.py)
hard   cross-entropy with the teacher's most probable class, without smoothing

A network with DeiT's token (`model.distilled=true`) learns the labels with one head and the teacher with the other; any
other network learns both with its only head. The teacher is in no module, so in no checkpoint, optimizer or average.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitlab.config.instantiate import build_object
from vitlab.config.schema import Node
from vitlab.models.flops import output_logits
from vitlab.models.vit_validation import pair
from vitlab.storage import safe_load
from vitlab.training.scores import at_least_float32
from vitlab.weights import load, locate
from vitlab.weights.configuration import mean_and_std
from vitlab.weights.open import open_weights

Numbers = Sequence[float]

log = logging.getLogger(__name__)


class Teacher(NamedTuple):
    """What is known of a teacher before its weights are read; None is unknown, or any."""

    build: Callable[..., nn.Module]  # for `in_chans` channels; with pretrained=False perhaps without weights
    num_classes: int
    classes: list[str] | None
    channels: int | None
    image_size: tuple[int, int]
    mean: Numbers | None
    std: Numbers | None


def open_teacher(source: str) -> Teacher:
    """Open a source (see `weights.locate`): any network of timm or of a run, a ViT from elsewhere."""
    files = locate.locate_weights(source)
    classes = (files.record.get("data") or {}).get("classes")
    if files.timm_name:
        import timm

        cfg, create = files.config["pretrained_cfg"], partial(timm.create_model, source[5:], pretrained=True)
        size = cfg["input_size"][1], cfg["input_size"][2]
        return Teacher(create, cfg["num_classes"], None, None, size, *mean_and_std(cfg))
    if classes and "state_dict" in files.content.parts:  # a run's checkpoint, not an export
        config, (mean, std) = files.record["config"], mean_and_std(files.record["preprocessing"])
        build = partial(build_from_checkpoint, files.file, config["model"], len(classes))
        return Teacher(build, len(classes), classes, len(mean or ()), pair(config["image_size"]), mean, std)
    weights = open_weights(source)
    known, prepared = weights.architecture.arguments, weights.preprocessing
    return Teacher(
        lambda in_chans, **_: load.load_pretrained(weights, in_channels=in_chans)[0],
        *(known["num_classes"], classes, None, pair(known["image_size"]), prepared.mean, prepared.std),
    )


def build_from_checkpoint(file: Path, model: Node, classes: int, in_chans: int, pretrained: bool = True) -> nn.Module:
    node = {key: value for key, value in model.items() if key != "pretrained"}
    network: nn.Module = build_object(node, num_classes=classes, in_channels=in_chans)
    if pretrained:
        safe_load.verify_checkpoint(file)
        state = safe_load.load_checkpoint(file)["state_dict"]
        network.load_state_dict({k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")})
    return network


class Distillation:
    """The loss with a teacher, which `load_teacher` loads; the settings are those of `Classifier`."""

    def __init__(self, kind: Literal["none", "soft", "hard"], source: str | None, alpha: float, temperature: float):
        if problems := list(distillation_problems(kind, source)):
            raise ValueError("\n".join(problems))
        self.kind, self.source, self.alpha, self.temperature = kind, source, alpha, temperature
        self.teacher: nn.Module | None = None

    def load_teacher(self, *, classes: Sequence[str], mean: Numbers, std: Numbers) -> None:
        """Load the teacher for data of these classes and normalization; `ValueError` if it doesn't fit them."""
        assert self.source is not None
        if problems := list(distillation_problems(self.kind, self.source, len(classes), len(mean), classes)):
            raise ValueError("\n".join(problems))
        opened = open_teacher(self.source)
        with torch.random.fork_rng(devices=[]):  # the training draws the same numbers as without a teacher
            self.teacher = opened.build(in_chans=len(mean)).float().eval().requires_grad_(False)
        known = [torch.tensor(own or data) for own, data in ((opened.mean, mean), (opened.std, std))]
        own_mean, own_std = (v if len(v) == len(mean) else v.mean().expand(len(mean)) for v in known)  # gray
        self.scale = (torch.tensor(std) / own_std).view(-1, 1, 1)
        self.shift = ((torch.tensor(mean) - own_mean) / own_std).view(-1, 1, 1)
        self.size = opened.image_size
        normalization = f"mean {list(opened.mean)}" if opened.mean else "mean and std are unknown: the data's"
        log.info("teacher %s: images of %d x %d pixels, %s", self.source, *self.size, normalization)
        locate.clear_cache()

    @torch.no_grad()
    def teacher_logits(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W] that are normalized as the data's."""
        assert self.teacher is not None
        images = at_least_float32(images)
        if (self.scale.device, self.scale.dtype) != (images.device, images.dtype):
            self.scale, self.shift = self.scale.to(images), self.shift.to(images)
            self.teacher.to(images)
        images = images * self.scale + self.shift
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        return at_least_float32(output_logits(self.teacher(images)))

    def losses(self, of_labels: Tensor, student: Tensor, images: Tensor) -> Tensor:
        """The loss per image [B] from the labels' [B] and the logits [B, classes] that learn from the teacher."""
        student, teacher = at_least_float32(student), self.teacher_logits(images)
        if self.kind == "hard":
            of_teacher = F.cross_entropy(student, teacher.argmax(dim=1), reduction="none")
        else:
            ours, theirs = ((logits / self.temperature).log_softmax(dim=1) for logits in (student, teacher))
            of_teacher = F.kl_div(ours, theirs, reduction="none", log_target=True).mean(dim=1) * self.temperature**2
        return (1 - self.alpha) * of_labels + self.alpha * of_teacher


def distillation_problems(
    kind: str, source: str | None, classes: int | None = None, channels: int | None = None, names: Sequence[str] = ()
) -> Iterator[str]:
    """Problems of the settings, and with `classes` of a teacher that can't be read or doesn't fit the data."""
    if (source is None) != (kind == "none"):
        yield f"classifier.teacher={source} with classifier.distillation={kind}: set both, or neither of them"
    elif source is not None and classes:
        teacher = f"classifier.teacher={source}"
        try:
            opened = open_teacher(source)
        except (ValueError, OSError, RuntimeError) as error:
            yield f"{teacher}: {error}"
            return
        if opened.num_classes != classes:
            yield f"{teacher} has {opened.num_classes} classes, and the data {classes}; take one of the same classes"
        elif names and opened.classes and opened.classes != list(names):
            theirs, ours = next(both for both in zip(opened.classes, names, strict=True) if both[0] != both[1])
            yield f"{teacher} has other classes than the data, or in another order: {theirs!r}, not {ours!r}"
        if opened.channels and channels and opened.channels != channels:
            yield f"{teacher} is for images of {opened.channels} channels, and the data has {channels}"
