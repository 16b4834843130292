"""Random operations of batches: RandAugment in its three meanings, AutoAugment, AugMix, 3-Augment, color jitter.

Each kind draws per image what torchvision's or timm's class, or big_vision's function, draws for one image.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from vitlab.data.augment_ops import NAMES, TORCHVISION, Sampling, apply_ops
from vitlab.data.sampler import seed_python_and_numpy

LEVELS = 31  # of RandAugment's and TrivialAugment's magnitudes: 0 to 30, as in torchvision and in the papers' code
ENHANCEMENTS = ("Brightness", "Color", "Contrast", "Sharpness")


class AutoAugmentation(NamedTuple):
    """A kind of `data.augment.auto_augment` and its settings; `std` and `sampling` are timm's."""

    kind: str
    ops: int
    level: int
    std: float
    sampling: Sampling

    def batch(self, images: Tensor) -> Tensor:
        """Augment a batch with draws per image."""
        ops, level = self.ops, self.level
        kinds: dict[str, Callable[[], Tensor]] = {
            "none": lambda: images,
            "randaugment": lambda: rand_augment(images, ops, level),
            "trivialaugment": lambda: trivial_augment(images),
            "timm_randaugment": lambda: timm_rand_augment(images, ops, level, self.std, self.sampling),
            "big_vision_randaugment": lambda: big_vision_rand_augment(images, ops, level),
            "augmix": lambda: torch.stack([*map(self.image_transform(), images)]),  # torchvision's, one by one
            "three_augment": lambda: three_augment(images),
        }
        return kinds.get(self.kind, lambda: auto_augment(images, self.kind.removeprefix("autoaugment_")))()

    def image_transform(self) -> Callable[[Tensor], Tensor]:
        """The transform of one image: torchvision's or timm's class, or a batch of one."""
        kinds: dict[str, Callable[..., Any]] = {
            "randaugment": partial(v2.RandAugment, self.ops, self.level),
            "trivialaugment": v2.TrivialAugmentWide,
            "augmix": v2.AugMix,
            **{f"autoaugment_{policy.value}": partial(v2.AutoAugment, policy) for policy in v2.AutoAugmentPolicy},
        }
        if self.kind not in kinds:
            return TimmRandAugment(self) if self.kind == "timm_randaugment" else self.one
        transform: Callable[[Tensor], Tensor] = kinds[self.kind](interpolation=v2.InterpolationMode.BILINEAR)
        return transform

    def one(self, image: Tensor) -> Tensor:
        return self.batch(image[None])[0]


class TimmRandAugment:
    """timm's RandAugment of one image."""

    def __init__(self, settings: AutoAugmentation) -> None:
        from timm.data.auto_augment import rand_augment_transform  # imports all of timm

        hparams: dict[str, Any] = {"img_mean": settings.sampling.fill, "magnitude_std": settings.std}
        if settings.sampling.kernel != "random":
            hparams["interpolation"] = Image.Resampling[settings.sampling.kernel.upper()]
        self.transform: Any = rand_augment_transform(f"rand-m{settings.level}-n{settings.ops}-inc1", hparams)
        for op in self.transform.ops:
            if op.name == "PosterizeIncreasing":
                op.aug_fn = posterize

    def __call__(self, image: Tensor) -> Tensor:
        with seed_python_and_numpy():
            changed: Tensor = tv.pil_to_tensor(self.transform(tv.to_pil_image(image)))
        return changed


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's, of level 10 too, black, for which Pillow 13 raises."""
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


def rand_augment(images: Tensor, ops: int, level: int) -> Tensor:
    """Apply RandAugment (Cubuk et al., 2020): `ops` operations per image, each of magnitude `level` of 0..30."""
    for _ in range(ops):
        images = _torchvision_ops(images, torch.full((len(images),), level), v2.RandAugment)
    return images


def trivial_augment(images: Tensor) -> Tensor:
    """Apply TrivialAugment, wide space (Müller and Hutter, 2021): one operation per image, of any magnitude."""
    return _torchvision_ops(images, torch.randint(LEVELS, (len(images),)), v2.TrivialAugmentWide)


def _torchvision_ops(images: Tensor, levels: Tensor, kind: Any) -> Tensor:
    table, signed = magnitude_table(kind, LEVELS, images.shape[-2], images.shape[-1])
    chosen = torch.randint(len(kind._AUGMENTATION_SPACE), (len(images),))
    signs = torch.where(torch.rand(len(images)) < 0.5, -1.0, 1.0)
    return apply_ops(images, chosen, table[chosen, levels] * torch.where(signed[chosen], signs, 1.0))


@lru_cache
def magnitude_table(kind: Any, levels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Of a class of torchvision, the magnitudes [operations, levels], in the order of NAMES, and which have a sign."""
    table, signed = torch.zeros(len(NAMES), levels), torch.zeros(len(NAMES), dtype=torch.bool)
    for name, (magnitudes, has_sign) in kind._AUGMENTATION_SPACE.items():
        row, values = NAMES.index(name), magnitudes(levels, height, width)
        signed[row] = has_sign
        if values is not None:
            table[row] = values.trunc() if name.startswith("Translate") else values  # complete pixels
    return table, signed


def auto_augment(images: Tensor, policy: str) -> Tensor:
    """Apply AutoAugment (Cubuk et al., 2019): one of the policy's pairs of operations per image."""
    policies: Any = v2.AutoAugment(v2.AutoAugmentPolicy(policy))._policies
    pairs = torch.tensor([[(NAMES.index(name), share, level or 0) for name, share, level in pair] for pair in policies])
    table, signed = magnitude_table(v2.AutoAugment, 10, images.shape[-2], images.shape[-1])
    for step in pairs[torch.randint(len(pairs), (len(images),))].unbind(1):  # [B, 3]
        chosen = torch.where(torch.rand(len(images)) <= step[:, 1], step[:, 0], 0.0).long()
        signs = torch.where(signed[chosen] & (torch.rand(len(images)) <= 0.5), -1.0, 1.0)
        images = apply_ops(images, chosen, table[chosen, step[:, 2].long()] * signs)
    return images


def timm_rand_augment(images: Tensor, ops: int, level: int, std: float, sampling: Sampling) -> Tensor:
    """Apply timm's `rand-m{level}-n{ops}-mstd{std}-inc1`: each operation with probability 0.5, and levels up to 10."""
    for _ in range(ops):
        levels = (level + std * torch.randn(len(images), dtype=torch.float64)).clamp(0, 10)
        images = _random_ops(images, timm_magnitudes(levels, images.shape[-2], images.shape[-1]), sampling, 0.5)
    return images


def timm_magnitudes(levels: Tensor, height: int, width: int) -> dict[str, Tensor]:
    """Of timm's 15 operations that increase with the level, float64 [B] of 0..10; signs are random."""
    part, signed, magnitudes = _common_magnitudes(levels)
    return magnitudes | {
        "Posterize": 4 - (4 * part).floor(),
        "Solarize": (255.5 - (256 * part).floor()) / 255,  # an integer, less a half against rounding
        **dict.fromkeys(ENHANCEMENTS, (0.9 * signed).clamp(min=-0.9)),
        "TranslateX": -0.45 * width * signed,
        "TranslateY": -0.45 * height * signed,
    }


def big_vision_rand_augment(images: Tensor, ops: int, level: int) -> Tensor:
    """Apply big_vision's `randaug({ops}, {level})`, for 224 pixels: at level 10, shifts by 100, squares of 80."""
    sampling = Sampling("nearest", (128,) * images.shape[1], origin=0.5)
    for _ in range(ops):
        levels = torch.full((len(images),), level, dtype=torch.float64)
        images = _random_ops(images, big_vision_magnitudes(levels), sampling)
    return images


def big_vision_magnitudes(levels: Tensor) -> dict[str, Tensor]:
    """Of big_vision's 16 operations, for levels float64 [B]; signs are random."""
    part, signed, magnitudes = _common_magnitudes(levels)
    return magnitudes | {
        "Posterize": (4 * part).floor().clamp(max=8),
        "Solarize": ((256 * part).floor() - 0.5) / 255,
        **dict.fromkeys(ENHANCEMENTS, 1.8 * part - 0.9),
        **dict.fromkeys(("TranslateX", "TranslateY"), 100 * signed),
        "Cutout": (40 * part).floor(),
    }


def _common_magnitudes(levels: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    part = levels / 10
    signed = torch.where(torch.rand(len(levels)) < 0.5, -part, part)
    magnitudes = dict.fromkeys(("AutoContrast", "Equalize", "Invert"), part) | {"SolarizeAdd": (110 * part).floor()}
    return part, signed, magnitudes | {"Rotate": 30 * signed, **dict.fromkeys(("ShearX", "ShearY"), 0.3 * signed)}


def three_augment(images: Tensor) -> Tensor:
    """Apply 3-Augment (Touvron et al., 2022, DeiT III): gray, inverted above 127, or blurred by up to 2 pixels."""
    radius = torch.empty(len(images)).uniform_(0.1, 2.0)
    return _random_ops(images, {"Gray": radius, "Solarize": torch.full_like(radius, 0.5), "Blur": radius}, TORCHVISION)


def color_jitter(images: Tensor, strength: float) -> Tensor:
    """Apply torchvision's ColorJitter of brightness, contrast and saturation by `strength`, in random order."""
    names = torch.tensor([NAMES.index(name) for name in ("Brightness", "Contrast", "Color")])
    for chosen in names[torch.rand(len(images), 3).argsort(1)].unbind(1):
        images = apply_ops(images, chosen, torch.empty(len(images)).uniform_(-min(1.0, strength), strength))
    return images


def _random_ops(images: Tensor, magnitudes: dict[str, Tensor], sampling: Sampling, probability: float = 1.0) -> Tensor:
    """Apply to each image one of the operations, or none, with its magnitude, [B]."""
    picked = torch.randint(len(magnitudes), (len(images),))
    chosen = torch.tensor([NAMES.index(name) for name in magnitudes])[picked]
    chosen[torch.rand(len(images)) >= probability] = NAMES.index("Identity")
    values = torch.stack(list(magnitudes.values()))[picked, torch.arange(len(images))]
    return apply_ops(images, chosen, values.float(), sampling)
