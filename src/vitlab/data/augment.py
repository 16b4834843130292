"""How training images are varied and how all images are prepared, on the device that trains.

Order for a batch in memory: uint8 -> crop, flip -> affine -> auto-augmentation -> float, resized, normalised
-> erasing -> Mixup or CutMix. For image folders, crop, flip and auto-augmentation have already happened in
the workers (see dataset.py).
"""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from vitlab.data import augment_ops

CACHED = 2**17  # numbers that a processor's cache holds


class Augment(nn.Module):
    """The knobs of augmentation, every one of them off by default but `crop_scale`, which folders need.

    Args:
        crop_padding: In memory only: shift by up to so many pixels, filled with black.
        flip: Mirror half of the images left to right.
        degrees: Rotate by up to so many degrees, either way.
        translate: Shift by up to this fraction of the side.
        scale: Enlarge by a factor from this range.
        shear: Shear along x by up to so many degrees.
        auto_augment: RandAugment or TrivialAugment (wide), with torchvision's table of operations.
        randaugment_ops: Operations per image.
        randaugment_magnitude: Their strength, 0 to 30.
        erasing: Probability with which a rectangle is replaced by the mean colour.
        mixup: Alpha of Mixup's Beta distribution; 0 is off.
        cutmix: Alpha of CutMix's. With both on, each batch takes one of them by chance.
        crop_scale: Image folders only: share of the image's area that a random crop takes.
        crop_fraction: Image folders only: share of the resized side that evaluation's centre crop keeps. None: what
            the weights that training begins from were evaluated with, else 0.875.

    Raises:
        ValueError: a knob is outside its range.
    """

    def __init__(
        self,
        *,
        crop_padding: int = 0,
        flip: bool = False,
        degrees: float = 0.0,
        translate: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shear: float = 0.0,
        auto_augment: Literal["none", "randaugment", "trivialaugment"] = "none",
        randaugment_ops: int = 2,
        randaugment_magnitude: int = 9,
        erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        crop_fraction: float | None = None,
    ) -> None:
        super().__init__()
        scale, crop_scale = _pair("scale", scale), _pair("crop_scale", crop_scale)
        _require("crop_padding", crop_padding, crop_padding >= 0, "at least 0")
        _require("degrees", degrees, 0 <= degrees <= 180, "between 0 and 180")
        _require("translate", translate, 0 <= translate <= 1, "between 0 and 1, a fraction of the side")
        _require("scale", scale, 0 < scale[0] <= scale[1], "[low, high] with 0 < low <= high")
        _require("shear", shear, 0 <= shear < 90, "at least 0 and below 90 degrees")
        names = ("none", "randaugment", "trivialaugment")
        _require("auto_augment", auto_augment, auto_augment in names, f"one of {', '.join(names)}")
        _require("randaugment_ops", randaugment_ops, randaugment_ops >= 1, "at least 1")
        level_is_known = 0 <= randaugment_magnitude < augment_ops.LEVELS
        _require("randaugment_magnitude", randaugment_magnitude, level_is_known, "between 0 and 30")
        _require("erasing", erasing, 0 <= erasing <= 1, "a probability between 0 and 1")
        _require("mixup", mixup, mixup >= 0, "at least 0 (0 is off)")
        _require("cutmix", cutmix, cutmix >= 0, "at least 0 (0 is off)")
        crop_is_valid = 0 < crop_scale[0] <= crop_scale[1] <= 1
        _require("crop_scale", crop_scale, crop_is_valid, "[low, high] with 0 < low <= high <= 1")
        crop_fraction = 0.875 if crop_fraction is None else crop_fraction
        _require("crop_fraction", crop_fraction, 0 < crop_fraction <= 1, "above 0 and at most 1")
        self.crop_padding, self.flip = crop_padding, flip
        self.degrees, self.translate, self.scale, self.shear = degrees, translate, scale, shear
        self.auto_augment = auto_augment
        self.randaugment_ops, self.randaugment_magnitude = randaugment_ops, randaugment_magnitude
        self.erasing, self.mixup, self.cutmix = erasing, mixup, cutmix
        self.crop_scale, self.crop_fraction = crop_scale, crop_fraction

    def forward(
        self, images: Tensor, targets: Tensor, *, prepare: "Prepare", num_classes: int, cropped: bool = False
    ) -> tuple[Tensor, Tensor]:
        """uint8 [B, C, H, W] and int64 [B] -> float [B, C, h, w] and int64 [B], or soft float [B, classes].

        Targets are soft if and only if Mixup or CutMix is on. `cropped`: the workers have cropped, flipped
        and auto-augmented.
        """
        images = prepare(self.vary(images, cropped=cropped))
        if self.erasing:
            images = augment_ops.erase(images, self.erasing)
        return self.mix(images, targets, num_classes)

    def vary(self, images: Tensor, *, cropped: bool = False) -> Tensor:
        """The part that works on uint8 images."""
        if not cropped and (self.crop_padding or self.flip):
            images = augment_ops.crop_and_flip(images, self.crop_padding, self.flip)
        if self.degrees or self.translate or self.shear or self.scale != (1.0, 1.0):
            images = augment_ops.random_affine(images, self.degrees, self.translate, self.scale, self.shear)
        if not cropped and self.auto_augment == "randaugment":
            images = augment_ops.rand_augment(images, self.randaugment_ops, self.randaugment_magnitude)
        if not cropped and self.auto_augment == "trivialaugment":
            images = augment_ops.trivial_augment(images)
        return images

    def mix(self, images: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Mixup or CutMix of neighbours in the (shuffled) batch."""
        use_mixup = self.mixup > 0
        if self.mixup > 0 and self.cutmix > 0:
            use_mixup = bool(torch.rand(()) < 0.5)
        if not use_mixup and self.cutmix == 0:
            return images, targets
        mixer = (
            mixer_of(v2.MixUp, self.mixup, num_classes) if use_mixup else mixer_of(v2.CutMix, self.cutmix, num_classes)
        )
        mixed_images, mixed_targets = mixer(images, targets)
        return mixed_images, mixed_targets


@lru_cache
def mixer_of(kind: type[v2.MixUp | v2.CutMix], alpha: float, num_classes: int) -> v2.Transform:
    """Made once: it takes longer than mixing small images."""
    return kind(alpha=alpha, num_classes=num_classes)


class Prepare(nn.Module):
    """uint8 images of any size -> float32 at `image_size` (height, width), normalised per channel."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: Literal["bicubic", "bilinear"] = "bicubic",
    ) -> None:
        super().__init__()
        self.image_size, self.interpolation = image_size, v2.InterpolationMode(interpolation)
        mean_, std_ = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        self.register_buffer("scale", 1 / (255 * std_), persistent=False)
        self.register_buffer("shift", -mean_ / std_, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != self.image_size:
            images = v2.functional.resize(images, list(self.image_size), self.interpolation, antialias=True)
        if images.device.type != "cpu" or images.dtype != torch.uint8 or torch.compiler.is_compiling():
            return (images * self.scale).add_(self.shift)
        prepared = torch.empty(images.shape)
        few = max(1, CACHED // max(1, images[:1].numel()))
        for start in range(0, len(images), few):  # the same, twice as fast: from the cache, of one type
            prepared[start : start + few].copy_(images[start : start + few]).mul_(self.scale).add_(self.shift)
        return prepared


def _pair(knob: str, value: tuple[float, float]) -> tuple[float, float]:
    _require(knob, tuple(value), len(value) == 2, "two numbers, [low, high]")
    return float(value[0]), float(value[1])


def _require(knob: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"data.augment.{knob}={value} must be {rule}")
