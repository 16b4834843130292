"""Distillation: the network also learns from a teacher's logits of the same augmented images (DeiT, arXiv 2012.12877).

soft   the Kullback-Leibler divergence from the teacher's probabilities at a temperature T, times T^2, as the mean over
       images and classes (facebookresearch/deit losses.py)
hard   cross-entropy with the teacher's most probable class, without smoothing

A network with DeiT's token (`model.distilled=true`) learns the labels with one head and the teacher with the other; any
other network learns both with its only head. The teacher is in no module, so in no checkpoint, optimizer or average.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitlab.config import allowlist
from vitlab.config.instantiate import build_object
from vitlab.models.flops import output_logits
from vitlab.models.vit_validation import pair
from vitlab.storage import safe_load
from vitlab.training.scores import at_least_float32
from vitlab.weights import load, locate
from vitlab.weights.open import open_weights
from vitlab.weights.preprocessing import mean_and_std

Kind = Literal["none", "soft", "hard"]
Numbers = Sequence[float]

log = logging.getLogger(__name__)


class TeacherFacts(NamedTuple):
    """What is known of a teacher before its weights are read."""

    files: locate.WeightFiles
    num_classes: int
    classes: list[str] | None  # None: names are unknown
    channels: int | None  # None: the weights fit any number
    image_size: tuple[int, int]
    mean: Numbers | None
    std: Numbers | None


def teacher_facts(source: str) -> TeacherFacts:
    """The facts of a source (see `weights.locate`): any network of timm or of a run, a ViT from elsewhere."""
    files = locate.locate_weights(source)
    record = files.record
    if files.timm_name:
        cfg = files.config["pretrained_cfg"]
        mean, std = mean_and_std(cfg)
        return TeacherFacts(files, cfg["num_classes"], None, None, tuple(cfg["input_size"][1:]), mean, std)
    if {"config", "data", "preprocessing"} <= record.keys() and "state_dict" in files.content.parts:
        classes, (mean, std) = record["data"]["classes"], mean_and_std(record["preprocessing"])
        size = pair(record["config"]["image_size"])
        return TeacherFacts(files, len(classes), classes, len(mean or ()), size, mean, std)
    weights = open_weights(source)
    known, prepared = weights.architecture.arguments, weights.preprocessing
    classes = (record.get("data") or {}).get("classes")
    size = pair(known["image_size"])
    return TeacherFacts(files, known["num_classes"], classes, None, size, prepared.mean, prepared.std)


def load_network(facts: TeacherFacts, channels: int) -> nn.Module:
    """The teacher's network for images of `channels` channels."""
    files = facts.files
    if files.timm_name:
        import timm

        return timm.create_model(files.source.partition(":")[2], pretrained=True, in_chans=channels)
    if facts.channels is None:
        return load.load_pretrained(open_weights(files.source), in_channels=channels)[0]
    safe_load.verify_checkpoint(files.file)
    content = safe_load.load_checkpoint(files.file)
    model = {k: v for k, v in content["vitlab"]["config"]["model"].items() if k != "pretrained"}
    allowlist.require_allowed(model, "model")
    network: nn.Module = build_object(model, num_classes=facts.num_classes, in_channels=facts.channels)
    state = content["state_dict"]
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")})
    return network


class Teacher:
    """A frozen network for images that are normalized as the data's; `mean` and `std` are the data's."""

    def __init__(self, facts: TeacherFacts, mean: Numbers, std: Numbers) -> None:
        with torch.random.fork_rng(devices=[]):  # the training draws the same numbers as without a teacher
            self.network = load_network(facts, len(mean)).float().eval().requires_grad_(False)
        self.size, count = facts.image_size, len(mean)
        own = [torch.tensor(v if v is not None else data) for v, data in ((facts.mean, mean), (facts.std, std))]
        own_mean, own_std = (v if len(v) == count else v.mean().expand(count) for v in own)  # gray: over the colors
        self.scale = (torch.tensor(std) / own_std).view(-1, 1, 1)
        self.shift = ((torch.tensor(mean) - own_mean) / own_std).view(-1, 1, 1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of normalized images [B, C, H, W]."""
        images = at_least_float32(images)
        if (self.scale.device, self.scale.dtype) != (images.device, images.dtype):
            self.scale, self.shift = self.scale.to(images), self.shift.to(images)
            self.network.to(images)
        images = images * self.scale + self.shift
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        return at_least_float32(output_logits(self.network(images)))


class Distillation:
    """The settings of `Classifier`, and the teacher once `load_teacher` was called."""

    def __init__(self, kind: Kind, source: str | None, alpha: float, temperature: float) -> None:
        if problems := list(setting_problems(kind, source)):
            raise ValueError("\n".join(problems))
        self.kind, self.source, self.alpha, self.temperature = kind, source, alpha, temperature
        self.data: dict[str, Any] = {}  # of the images, for the capture of a step
        self.teacher: Teacher | None = None

    def load_teacher(self, *, classes: Sequence[str], mean: Numbers, std: Numbers) -> None:
        """Load the teacher for data of these classes and normalization; `ValueError` if it doesn't fit them."""
        assert self.source is not None
        facts = teacher_facts(self.source)
        if problems := list(teacher_problems(self.source, facts, len(classes), len(mean), classes)):
            raise ValueError("\n".join(problems))
        self.data = {"classes": list(classes), "mean": list(mean), "std": list(std)}
        self.teacher = Teacher(facts, mean, std)
        count = sum(p.numel() for p in self.teacher.network.parameters())
        known = "mean and std are unknown: the data's" if facts.mean is None else f"mean {list(facts.mean)}"
        log.info("teacher %s: %s parameters, %d x %d pixels, %s", self.source, f"{count:,}", *facts.image_size, known)
        locate.clear_cache()

    def losses(self, of_labels: Tensor, student: Tensor, images: Tensor) -> Tensor:
        """The loss per image [B] from the labels' [B] and the logits [B, classes] that learn from the teacher."""
        assert self.teacher is not None
        student, teacher = at_least_float32(student), self.teacher(images)
        if self.kind == "hard":
            of_teacher = F.cross_entropy(student, teacher.argmax(dim=1), reduction="none")
        else:
            ours, theirs = ((logits / self.temperature).log_softmax(dim=1) for logits in (student, teacher))
            divergence = F.kl_div(ours, theirs, reduction="none", log_target=True)  # B classes
            of_teacher = divergence.mean(dim=1) * self.temperature**2
        return (1 - self.alpha) * of_labels + self.alpha * of_teacher


@contextmanager
def both_heads(network: nn.Module) -> Iterator[None]:
    """Let a network with DeiT's token return the logits of both heads, as timm does: [2, B, classes], or a pair."""
    network.distilled_training = True  # type: ignore[assignment]
    try:
        yield
    finally:
        network.distilled_training = False  # type: ignore[assignment]


def setting_problems(kind: str, source: str | None) -> Iterator[str]:
    if kind == "none" and source is not None:
        yield f"classifier.teacher={source} is of no use with classifier.distillation=none; set soft or hard"
    elif kind != "none" and source is None:
        remedy = "set classifier.teacher to a run, timm:NAME, hf:NAME or a file"
        yield f"classifier.distillation={kind} needs a teacher; {remedy}"


def teacher_problems(
    source: str, facts: TeacherFacts, num_classes: int, channels: int | None, classes: Sequence[str] | None = None
) -> Iterator[str]:
    """Why a teacher doesn't fit the data."""
    if facts.num_classes != num_classes:
        has = f"has {facts.num_classes} classes" if facts.num_classes else "has no head"
        yield f"classifier.teacher={source} {has}, and the data {num_classes}; take a teacher of the same classes"
    elif classes and facts.classes and list(classes) != list(facts.classes):
        theirs, ours = next(both for both in zip(facts.classes, classes, strict=True) if both[0] != both[1])
        what = f"other classes than the data, or in another order: {theirs!r}, not {ours!r}"
        yield f"classifier.teacher={source} has {what}"
    if facts.channels is not None and channels is not None and facts.channels != channels:
        yield f"classifier.teacher={source} is for images of {facts.channels} channels, and the data has {channels}"
