"""Image operations on batches, with random numbers per image.

`torchvision.transforms.v2` draws once per batch. Here each image has its own draw, made on the CPU: a GPU needn't wait,
and a run on it has the same augmentation as one on the CPU. Legend: B images, C channels, H x W pixels, uint8.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

LEVELS = 31  # of magnitudes: 0 to 30, as in torchvision and in the papers' code


def affine_matrices(
    *, angle: Tensor, shift_x: Tensor, shift_y: Tensor, scale: Tensor, shear_x: Tensor, shear_y: Tensor
) -> Tensor:
    """[B, 2, 3] from output to input pixels, relative to the center; arguments [B] in clockwise radians and pixels."""
    a = torch.cos(angle - shear_y) / torch.cos(shear_y)
    b = -torch.cos(angle - shear_y) * torch.tan(shear_x) / torch.cos(shear_y) - torch.sin(angle)
    c = torch.sin(angle - shear_y) / torch.cos(shear_y)
    d = -torch.sin(angle - shear_y) * torch.tan(shear_x) / torch.cos(shear_y) + torch.cos(angle)
    inverse = torch.stack([d, -b, -c, a], dim=1).view(-1, 2, 2) / scale[:, None, None]
    shift = torch.stack([shift_x, shift_y], dim=1)[:, :, None]
    return torch.cat([inverse, -inverse @ shift], dim=2)


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Transform each image by its matrix of `affine_matrices`, bilinear, with black outside."""
    height, width = images.shape[-2:]
    half = torch.tensor([width / 2, height / 2])  # the unit of affine_grid
    theta = matrices * torch.cat([half, torch.ones(1)]) / half[:, None]
    warped = F.grid_sample(images.float(), affine_grid(theta.to(images.device), height, width), align_corners=False)
    return warped.round_().clamp_(0, 255).to(torch.uint8)


def affine_grid(theta: Tensor, height: int, width: int) -> Tensor:
    """Sampling grid [B, H, W, 2], as torch's `affine_grid` up to rounding, without a product per pixel."""
    x = torch.linspace(1 / width - 1, 1 - 1 / width, width, device=theta.device)
    y = torch.linspace(1 / height - 1, 1 - 1 / height, height, device=theta.device)
    along = theta[:, :, 0, None] * x + theta[:, :, 2, None]  # [B, 2, W]
    across = theta[:, :, 1, None] * y  # [B, 2, H]
    return (across[:, :, :, None] + along[:, :, None, :]).permute(0, 2, 3, 1)


def random_affine(images: Tensor, degrees: float, translate: float, scale: tuple[float, float], shear: float) -> Tensor:
    """Apply torchvision's RandomAffine with draws per image; `translate` is a fraction of the side."""
    batch, _, height, width = images.shape

    def symmetric(limit: float) -> Tensor:
        return (2 * torch.rand(batch) - 1) * limit

    matrices = affine_matrices(
        angle=symmetric(degrees).deg2rad(),
        shift_x=symmetric(translate * width).round(),
        shift_y=symmetric(translate * height).round(),
        scale=scale[0] + (scale[1] - scale[0]) * torch.rand(batch),
        shear_x=symmetric(shear).deg2rad(),
        shear_y=torch.zeros(batch),
    )
    return warp(images, matrices)


# Operation -> (largest magnitude of RandAugment, largest of TrivialAugment's wide space, signed)
OPS: dict[str, tuple[float, float, bool]] = {
    "Identity": (0.0, 0.0, False),
    "ShearX": (0.3, 0.99, True),
    "ShearY": (0.3, 0.99, True),
    "TranslateX": (150 / 331, 32.0, True),  # RandAugment: a fraction of the width; TrivialAugment: pixels
    "TranslateY": (150 / 331, 32.0, True),
    "Rotate": (30.0, 135.0, True),  # degrees, counter-clockwise
    "Brightness": (0.9, 0.99, True),
    "Color": (0.9, 0.99, True),
    "Contrast": (0.9, 0.99, True),
    "Sharpness": (0.9, 0.99, True),
    "Posterize": (4.0, 6.0, False),  # dropped bits
    "Solarize": (1.0, 1.0, False),
    "AutoContrast": (0.0, 0.0, False),
    "Equalize": (0.0, 0.0, False),
}
NAMES = tuple(OPS)
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def rand_augment(images: Tensor, ops: int, level: int) -> Tensor:
    """Apply RandAugment (Cubuk et al., 2020): `ops` operations per image, each of magnitude `level` of 0..30."""
    for _ in range(ops):
        images = _random_ops(images, torch.full((len(images),), level), wide=False)
    return images


def trivial_augment(images: Tensor) -> Tensor:
    """Apply TrivialAugment, wide space (Müller and Hutter, 2021): one operation per image, of any magnitude."""
    return _random_ops(images, torch.randint(LEVELS, (len(images),)), wide=True)


def _random_ops(images: Tensor, levels: Tensor, wide: bool) -> Tensor:
    chosen = torch.randint(len(NAMES), (len(images),))
    signs = torch.where(torch.rand(len(images)) < 0.5, -1.0, 1.0)
    magnitudes = torch.zeros(len(images))
    for index, name in enumerate(NAMES):
        here = chosen == index
        magnitudes[here] = magnitude(name, levels[here], wide, (images.shape[-2], images.shape[-1]))
        if OPS[name][2]:
            magnitudes[here] *= signs[here]
    return apply_ops(images, chosen, magnitudes)


def magnitude(name: str, levels: Tensor, wide: bool, size: tuple[int, int]) -> Tensor:
    """Magnitudes of an operation, in its own unit, for `levels` (int64 [n] in 0..30), as in torchvision's table."""
    largest = OPS[name][1 if wide else 0]
    if name.startswith("Translate") and not wide:
        largest *= size[1] if name == "TranslateX" else size[0]
    if name == "Solarize":
        return torch.linspace(1.0, 0.0, LEVELS)[levels]
    value = torch.linspace(0.0, largest, LEVELS)[levels]
    if name == "Posterize":
        return 8 - value.round()
    return value.trunc() if name.startswith("Translate") else value


def apply_ops(images: Tensor, chosen: Tensor, magnitudes: Tensor) -> Tensor:
    """Apply the operation NAMES[chosen[i]] with magnitudes[i] to image i."""
    geometric = torch.isin(chosen, torch.tensor([NAMES.index(name) for name in GEOMETRIC]))
    groups: list[tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]] = [
        (chosen == NAMES.index(name), op) for name, op in _POINTWISE.items()
    ]
    groups.append((geometric, lambda part, values: warp(part, _matrices(part, chosen[geometric], values))))
    groups.append((chosen == NAMES.index("Identity"), lambda part, _: part))
    places, parts = [], []
    for members, op in groups:
        where = members.nonzero().flatten()
        if len(where):
            places.append(where)
            parts.append(op(images.index_select(0, where.to(images.device)), magnitudes[where]))
    return torch.cat(parts).index_select(0, torch.cat(places).argsort().to(images.device))


def _matrices(images: Tensor, chosen: Tensor, values: Tensor) -> Tensor:
    def of(name: str) -> Tensor:
        return torch.where(chosen == NAMES.index(name), values, 0.0)

    height, width = images.shape[-2:]
    shear_x, shear_y = of("ShearX"), of("ShearY")
    return affine_matrices(
        angle=-of("Rotate").deg2rad(),
        # shears keep the upper left corner fixed, not the center
        shift_x=of("TranslateX") - shear_x * (height / 2),
        shift_y=of("TranslateY") - shear_y * (width / 2),
        scale=torch.ones(len(values)),
        shear_x=shear_x.atan(),
        shear_y=shear_y.atan(),
    )


def _enhance(degenerate: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Pillow's ImageEnhance: interpolate, or extrapolate, between the result of `degenerate` and the image."""

    def enhance(images: Tensor, magnitudes: Tensor) -> Tensor:
        factor = (1 + magnitudes).to(images.device)[:, None, None, None]
        mixed = torch.lerp(degenerate(images, 0.0).float(), images.float(), factor)
        return mixed.clamp_(0, 255).to(torch.uint8)

    return enhance


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    drop = (8 - bits).to(images.device, torch.uint8)[:, None, None, None]
    return (images >> drop) << drop


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    bright = images >= (255 * threshold).ceil().to(images.device, torch.uint8)[:, None, None, None]
    return torch.where(bright, 255 - images, images)


_POINTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": _enhance(tv.adjust_brightness),
    "Color": _enhance(tv.adjust_saturation),
    "Contrast": _enhance(tv.adjust_contrast),
    "Sharpness": _enhance(tv.adjust_sharpness),
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": lambda images, _: tv.autocontrast(images),
    "Equalize": lambda images, _: tv.equalize(images),
}
