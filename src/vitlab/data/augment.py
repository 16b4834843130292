"""Augment training images, and resize and normalize all images, on the training device.

Order: uint8 -> crop, flip -> affine -> auto-augmentation -> float, resized, normalized -> erasing -> Mixup or CutMix.
For image folders, the workers crop, flip and auto-augment (dataset.py).
"""

from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from vitlab.config import bounds
from vitlab.config.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability
from vitlab.data import augment_ops, crops
from vitlab.data.auto_augment import AutoAugmentation, color_jitter
from vitlab.data.sampler import seed_python_and_numpy
from vitlab.data.source import Source

AutoAugment = Literal[
    "none", "randaugment", "trivialaugment", "timm_randaugment", "big_vision_randaugment",
    "autoaugment_imagenet", "autoaugment_cifar10", "autoaugment_svhn", "augmix", "three_augment",
]  # fmt: skip
Share = Annotated[float, Gt(0), Le(1)]

CACHE_SIZE = 2**17  # numbers that fit into a processor's cache


class Augment(nn.Module):
    """Augmentation of training images, off by default except for `crop_scale`.

    Args:
        crop: `inception`: torchvision's RandomResizedCrop to the input size. `simple`: resize to just cover the input
            size, then shift by up to `crop_padding` pixels (0: 4, as DeiT III) with reflection. `none`: the crop of
            evaluation, for sets in memory `crop_padding` alone. None: `inception` for image folders, else `none`.
        crop_scale: Range of the area of `inception` crops, as a share of the image.
        crop_interpolation: Of resizing a crop; `random`: bilinear or bicubic, per image. None: `data.interpolation`.
        crop_antialias: Average over all pixels when a crop is made smaller; without, as in big_vision.
        crop_padding: Shift by up to this many pixels, filled with black; for sets in memory.
        flip: Mirror half of the images left to right.
        degrees: Rotate by up to this many degrees in either direction.
        translate: Shift by up to this fraction of the side.
        scale: Range of a zoom factor.
        shear: Shear along x by up to this many degrees.
        auto_augment: RandAugment as torchvision has it, as timm (`rand-m9-mstd0.5-inc1`: with invert and solarize-add,
            each operation with probability 0.5, the mean color outside) or as big_vision (with cutout, for 224 pixels);
            torchvision's TrivialAugment (wide), AutoAugment and AugMix; or DeiT III's 3-Augment.
        randaugment_ops: RandAugment's operations per image.
        randaugment_magnitude: Their magnitude, of 30 in torchvision, of 10 in timm, which clips it, and in big_vision.
        randaugment_std: Standard deviation of the magnitude, for `timm_randaugment`.
        color_jitter: Change brightness, contrast and saturation, in random order, by up to this fraction.
        erasing: Probability of replacing a rectangle.
        erasing_mode: By the mean color, with sides clipped to the image, or as timm's `rand` and `pixel`, by normal
            noise per channel or pixel.
        erasing_area: Range of the rectangle's area, as a share of the image; timm's is 0.02 to 1/3.
        mixup: Alpha of Mixup's Beta distribution; 0 is off.
        cutmix: Alpha of CutMix's; 0 is off. With both on, each draw uses one of them at random.
        mix_probability: Probability of mixing at all, per draw.
        mix_switch_probability: Probability of CutMix, if both are on.
        mix_mode: One draw per batch, per pair of images that are mixed with each other, or per image.
        mix_off_epoch: Epochs to train before mixing ends; None: never.
        crop_fraction: Share of the resized side that evaluation's center crop keeps; for image folders. None: that of
            the weights that training starts from, else 0.875.
    """

    @bounds.check_bounds
    def __init__(
        self,
        *,
        crop: Literal["inception", "simple", "none"] | None = None,
        crop_scale: Annotated[tuple[Share, Share], bounds.Ascending()] = (0.08, 1.0),
        crop_interpolation: Literal["bicubic", "bilinear", "random"] | None = None,
        crop_antialias: bool = True,
        crop_padding: NonNegativeInt = 0,
        flip: bool = False,
        degrees: Annotated[float, Ge(0), Le(180)] = 0.0,
        translate: Annotated[Probability, "a fraction of the side"] = 0.0,
        scale: Annotated[tuple[PositiveFloat, PositiveFloat], bounds.Ascending()] = (1.0, 1.0),
        shear: Annotated[float, Ge(0), Lt(90)] = 0.0,
        auto_augment: AutoAugment = "none",
        randaugment_ops: PositiveInt = 2,
        randaugment_magnitude: Annotated[int, Ge(0), Le(30)] = 9,
        randaugment_std: NonNegativeFloat = 0.0,
        color_jitter: NonNegativeFloat = 0.0,
        erasing: Annotated[Probability, "a probability"] = 0.0,
        erasing_mode: Literal["const", "channel", "pixel"] = "const",
        erasing_area: Annotated[tuple[Share, Share], bounds.Ascending()] = (0.02, 0.33),
        mixup: Annotated[NonNegativeFloat, "0 is off"] = 0.0,
        cutmix: Annotated[NonNegativeFloat, "0 is off"] = 0.0,
        mix_probability: Probability = 1.0,
        mix_switch_probability: Probability = 0.5,
        mix_mode: Literal["batch", "pair", "elem"] = "batch",
        mix_off_epoch: PositiveInt | None = None,
        crop_fraction: Share | None = None,
    ) -> None:
        super().__init__()
        if crop_interpolation == "random" and crop in ("simple", "none"):
            raise ValueError(f"data.augment.crop_interpolation=random is for crop=inception, not {crop}; choose one")
        if crop_padding and crop == "inception":
            remedy = "is for data.augment.crop=simple and none, not inception; set crop_padding to 0"
            raise ValueError(f"data.augment.crop_padding={crop_padding} {remedy}")
        if not crop_antialias and crop_interpolation != "bilinear":
            remedy = "works with data.augment.crop_interpolation=bilinear alone; set that, or leave crop_antialias out"
            raise ValueError(f"data.augment.crop_antialias=false {remedy}")
        if randaugment_std and auto_augment not in ("none", "timm_randaugment"):
            remedy = f"is for data.augment.auto_augment=timm_randaugment, not {auto_augment}; set it to 0"
            raise ValueError(f"data.augment.randaugment_std={randaugment_std} {remedy}")
        self.crop, self.crop_interpolation, self.crop_antialias = crop, crop_interpolation, crop_antialias
        self.crop_padding, self.flip = crop_padding, flip
        self.degrees, self.translate, self.shear = degrees, translate, shear
        self.scale, self.crop_scale = (float(scale[0]), float(scale[1])), (float(crop_scale[0]), float(crop_scale[1]))
        self.auto_augment = auto_augment
        self.randaugment_ops, self.randaugment_magnitude = randaugment_ops, randaugment_magnitude
        self.randaugment_std, self.color_jitter = randaugment_std, color_jitter
        self.erasing, self.erasing_mode, self.erasing_area = erasing, erasing_mode, erasing_area
        self.mixup, self.cutmix, self.mix_off_epoch = mixup, cutmix, mix_off_epoch
        self.mix_mode, self.mix_probability = mix_mode, mix_probability
        self.mix_switch_probability = mix_switch_probability
        self.crop_fraction = 0.875 if crop_fraction is None else crop_fraction

    def check(self, source: str, *, in_memory: bool, channels: int) -> None:
        """Raise `ValueError` for settings that don't fit a source of this name."""
        if self.crop_padding and not in_memory and self.crop != "simple":
            remedy = "image folders take random crops by data.augment.crop_scale, so set crop_padding to 0"
            raise ValueError(f"data.augment.crop_padding={self.crop_padding} is for data sets in memory; {remedy}")
        off = {"auto_augment": "none", "color_jitter": 0.0}
        if channels not in (1, 3) and (on := [name for name, value in off.items() if getattr(self, name) != value]):
            remedy = f"works on 1 or 3 channels, and {source} has {channels}; set it to {off[on[0]]}"
            raise ValueError(f"data.augment.{on[0]}={getattr(self, on[0])} {remedy}")

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        *,
        prepare: "Prepare",
        num_classes: int,
        cropped: bool = False,
        epoch: int = 0,
    ) -> tuple[Tensor, Tensor]:
        # uint8 [B, C, H, W] and int64 [B] -> float [B, C, h, w] and int64 [B]; with Mixup or CutMix, the targets become
        # soft, float [B, classes]. `cropped`: the workers have cropped, flipped and auto-augmented.
        images = prepare(self.vary(images, prepare, cropped=cropped))
        if self.erasing:
            images = augment_ops.erase(images, self.erasing, self.erasing_area, self.erasing_mode)
        mixes = (self.mixup or self.cutmix) and (self.mix_off_epoch is None or epoch < self.mix_off_epoch)
        return self.mix(images, targets, num_classes) if mixes else (images, targets)

    def vary(self, images: Tensor, prepare: "Prepare", *, cropped: bool = False) -> Tensor:
        if not cropped:
            images = self.crop_and_flip(images, prepare)
        if self.degrees or self.translate or self.shear or self.scale != (1.0, 1.0):
            images = augment_ops.random_affine(images, self.degrees, self.translate, self.scale, self.shear)
        if not cropped:
            images = self.auto(prepare.interpolation.value, prepare.mean).batch(images)
            images = color_jitter(images, self.color_jitter) if self.color_jitter else images
        return images

    def mix(self, images: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Apply Mixup or CutMix: per batch, to neighbors, torchvision's; else timm's, to images i and B - 1 - i."""
        if self.mix_mode == "batch":
            if self.mix_probability < 1 and torch.rand(()) >= self.mix_probability:
                return images, F.one_hot(targets, num_classes).float()
            kinds = [(kind, alpha) for kind, alpha in ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix)) if alpha > 0]
            is_first = len(kinds) == 1 or torch.rand(()) < 1 - self.mix_switch_probability
            kind, alpha = kinds[0 if is_first else 1]
            mixed: tuple[Tensor, Tensor] = build_mixer(kind, alpha, num_classes)(images, targets)
            return mixed
        from timm.data.mixup import Mixup  # imports all of timm

        settings: dict[str, Any] = {"prob": self.mix_probability, "switch_prob": self.mix_switch_probability}
        settings |= {"mode": self.mix_mode, "label_smoothing": 0.0, "num_classes": num_classes}
        mixer = Mixup(self.mixup, self.cutmix, **settings)  # type: ignore[no-untyped-call]
        even = len(images) // 2 * 2  # of an odd number, the last image isn't mixed
        with seed_python_and_numpy():
            some_images, some_targets = mixer(images[:even].clone(), targets[:even])
        others = F.one_hot(targets[even:], num_classes).float()
        return torch.cat([some_images, images[even:]]), torch.cat([some_targets, others])

    def auto(self, interpolation: Literal["bicubic", "bilinear"], mean: tuple[float, ...]) -> AutoAugmentation:
        """Auto-augmentation of images of this mean; the interpolation is that of crops."""
        color = tuple(min(255, round(255 * value)) for value in mean)
        settings = (self.auto_augment, self.randaugment_ops, self.randaugment_magnitude, self.randaugment_std)
        return AutoAugmentation(*settings, augment_ops.Sampling(self.crop_interpolation or interpolation, color))

    def crop_and_flip(self, images: Tensor, prepare: "Prepare") -> Tensor:
        """The crops of sets in memory."""
        size, mode = prepare.image_size, self.crop_interpolation or prepare.interpolation.value
        if self.crop == "simple":
            images = crops.cover(images, size, v2.InterpolationMode(mode), antialias=self.crop_antialias)
            padding = self.crop_padding or crops.REFLECTION
            return crops.crop_and_flip(images, padding, self.flip, size=size, mode="reflect")
        if self.crop == "inception":
            images = crops.random_resized_crop(images, size, self.crop_scale, mode, antialias=self.crop_antialias)
        if self.crop_padding or self.flip:
            images = crops.crop_and_flip(images, self.crop_padding, self.flip)
        return images


@lru_cache
def build_mixer(kind: type[v2.MixUp | v2.CutMix], alpha: float, num_classes: int) -> v2.Transform:
    """A transform that is built once, which takes longer than mixing small images."""
    return kind(alpha=alpha, num_classes=num_classes)


def per_channel(
    knob: str, values: tuple[float, ...] | None, default: tuple[float, ...], source: Source
) -> tuple[float, ...]:
    """`values` (for gray images their mean), or the default, one per channel of the source."""
    if values is None:
        return default
    if source.channels == 1 and len(values) > 1:
        return (sum(values) / len(values),)
    if len(values) != source.channels:
        channels = f"{len(values)} channels, and {source.name} has {source.channels}"
        raise ValueError(f"data.{knob}={list(values)} is for {channels}")
    return tuple(values)


class Prepare(nn.Module):
    """Resize uint8 images to `image_size` (height, width) and normalize them per channel, float32."""

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
        self.image_size, self.mean, self.interpolation = image_size, mean, v2.InterpolationMode(interpolation)
        mean_, std_ = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        self.register_buffer("scale", 1 / (255 * std_), persistent=False)
        self.register_buffer("shift", -mean_ / std_, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != self.image_size:
            images = v2.functional.resize(images, list(self.image_size), self.interpolation, antialias=True)
        if images.device.type != "cpu" or images.dtype != torch.uint8 or torch.compiler.is_compiling():
            return (images * self.scale).add_(self.shift)
        prepared = torch.empty(images.shape)
        few = max(1, CACHE_SIZE // max(1, images[:1].numel()))
        for start in range(0, len(images), few):  # the same numbers, twice as fast: in the cache, in place
            prepared[start : start + few].copy_(images[start : start + few]).mul_(self.scale).add_(self.shift)
        return prepared
