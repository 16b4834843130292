"""Image operations on batches, with random numbers per image.

`torchvision.transforms.v2` draws once per batch. Here each image has its own draw, made on the CPU: a GPU needn't wait,
and a run on it has the same augmentation as one on the CPU. Legend: B images, C channels, H x W pixels, uint8.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from vitlab.data.crops import resample
from vitlab.data.sampler import seed_python_and_numpy

Kernel = Literal["nearest", "bilinear", "bicubic", "random"]
MOST_BLUR = 2  # pixels, the largest radius


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


class Sampling(NamedTuple):
    """How geometric operations sample pixels; by default as torchvision does, bilinear with black outside."""

    kernel: Kernel = "bilinear"  # random: bilinear or bicubic, per image; torch's bicubic is smoother than Pillow's
    fill: tuple[int, ...] | None = None  # the color outside, up to the edge; None: black, blended with the edge
    origin: float = 0.0  # of shears, from the upper left corner, in pixels


TORCHVISION = Sampling()


def warp(images: Tensor, matrices: Tensor, sampling: Sampling = TORCHVISION) -> Tensor:
    """Transform each image by its matrix of `affine_matrices`."""
    height, width = images.shape[-2:]
    half = torch.tensor([width / 2, height / 2])  # the unit of affine_grid
    theta = matrices * torch.cat([half, torch.ones(1)]) / half[:, None]
    grid = affine_grid(theta.to(images.device), height, width)
    if sampling.fill is None:
        warped = F.grid_sample(images.float(), grid, align_corners=False)
        return warped.round_().clamp_(0, 255).to(torch.uint8)
    warped = F.grid_sample(images.float(), grid, sampling.kernel, "border", align_corners=False)
    outside = ((grid < -1) | (grid >= 1)).any(3)[:, None]
    fill = torch.tensor(sampling.fill, dtype=torch.uint8, device=images.device)[:, None, None]
    # Pillow rounds down; what is an integer up to rounding stays
    return torch.where(outside, fill, warped.add_(1e-3).clamp_(0, 255).to(torch.uint8))


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


# RandAugment's operations first, in the order of its draws
NAMES = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
    *("Invert", "SolarizeAdd", "Cutout", "Gray", "Blur"),
)
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def apply_ops(images: Tensor, chosen: Tensor, magnitudes: Tensor, sampling: Sampling = TORCHVISION) -> Tensor:
    """Apply the operation NAMES[chosen[i]] with magnitudes[i] to image i."""
    key = torch.where(torch.isin(chosen, torch.tensor([NAMES.index(name) for name in GEOMETRIC])), len(NAMES), chosen)
    if sampling.kernel == "random":
        key += (key == len(NAMES)) & (torch.rand(len(images)) < 0.5)
    places, parts = [], []
    for group in sorted(set(key.tolist())):
        where = (key == group).nonzero().flatten()
        part, values = images.index_select(0, where.to(images.device)), magnitudes[where]
        if group >= len(NAMES):
            kernel: Kernel = "bicubic" if group > len(NAMES) else "bilinear"
            how = sampling._replace(kernel=kernel) if sampling.kernel == "random" else sampling
            part = _transform(part, values, chosen[where], how)
        elif NAMES[group] != "Identity":
            part = _POINTWISE[NAMES[group]](part, values)
        places.append(where)
        parts.append(part)
    return torch.cat(parts).index_select(0, torch.cat(places).argsort().to(images.device))


def _transform(images: Tensor, values: Tensor, chosen: Tensor, sampling: Sampling) -> Tensor:
    def of(name: str) -> Tensor:
        return torch.where(chosen == NAMES.index(name), values, 0.0)

    height, width = images.shape[-2:]
    shear_x, shear_y = of("ShearX"), of("ShearY")
    matrices = affine_matrices(
        angle=-of("Rotate").deg2rad(),
        # shears keep the upper left corner fixed, not the center
        shift_x=of("TranslateX") - shear_x * (height / 2 - sampling.origin),
        shift_y=of("TranslateY") - shear_y * (width / 2 - sampling.origin),
        scale=torch.ones(len(values)),
        shear_x=shear_x.atan(),
        shear_y=shear_y.atan(),
    )
    return warp(images, matrices, sampling)


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
    bright = images >= (255 * threshold).ceil().to(images.device, torch.int16)[:, None, None, None]
    return torch.where(bright, 255 - images, images)


def _solarize_add(images: Tensor, addition: Tensor) -> Tensor:
    added = (images + addition.to(images.device, torch.int16)[:, None, None, None]).clamp_(max=255)
    return torch.where(images < 128, added.to(torch.uint8), images)


def _cutout(images: Tensor, half: Tensor) -> Tensor:
    """Gray squares of twice `half` pixels, anywhere with their centers inside."""
    row, col = (torch.randint(side, (len(images),)) for side in images.shape[-2:])
    return images.masked_fill(rectangles(images, row - half, row + half, col - half, col + half), 128)


def _blur(images: Tensor, radius: Tensor) -> Tensor:
    """Pillow's GaussianBlur: three times the mean of a box with fractional edges."""
    variance = radius * radius / 3
    edge = (((12 * variance + 1).sqrt() - 1) / 2).floor()  # complete pixels on each side of the center
    part = (2 * edge + 1) * (edge * (edge + 1) - 3 * variance) / (6 * (variance - (edge + 1) ** 2))
    edge, part = edge.to(images.device)[:, None, None], part.to(images.device)[:, None, None]

    def weights(side: int) -> Tensor:  # [B, side, side]; the edge of the image is repeated outside
        place = torch.arange(side, device=images.device)
        outside = torch.arange(-MOST_BLUR - 1, side + MOST_BLUR + 1, device=images.device)
        distance = (place[:, None] - outside).abs()
        box = torch.where(distance <= edge, 1.0, torch.where(distance == edge + 1, part, 0.0))
        box = box / box.sum(2, keepdim=True)
        return torch.zeros(len(images), side, side, device=images.device).index_add_(2, outside.clamp(0, side - 1), box)

    rows, cols = (torch.linalg.matrix_power(weights(side), 3) for side in images.shape[-2:])
    return resample(images, rows, cols)


_POINTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": _enhance(tv.adjust_brightness),
    "Color": _enhance(tv.adjust_saturation),
    "Contrast": _enhance(tv.adjust_contrast),
    "Sharpness": _enhance(tv.adjust_sharpness),
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": lambda images, _: tv.autocontrast(images),
    "Equalize": lambda images, _: tv.equalize(images),
    "Invert": lambda images, _: 255 - images,
    "SolarizeAdd": _solarize_add,
    "Cutout": _cutout,
    "Gray": lambda images, _: tv.rgb_to_grayscale(images, images.shape[1]),
    "Blur": _blur,
}


def rectangles(images: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Where the images have their rectangles, bool [B, 1, H, W]; sides [B], in pixels."""
    top, bottom, left, right = torch.stack([top, bottom, left, right]).to(images.device)[:, :, None]
    row, col = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    rows, cols = (row >= top) & (row < bottom), (col >= left) & (col < right)  # [B, H], [B, W]
    return rows[:, None, :, None] & cols[:, None, None, :]


def erase(
    images: Tensor,
    probability: float,
    area: tuple[float, float] = (0.02, 0.33),
    mode: Literal["const", "channel", "pixel"] = "const",
) -> Tensor:
    """Apply Random Erasing (Zhong et al., 2020) to normalized float images: fill one rectangle per image.

    `const`: with zeros; sides are clipped to the image. `channel`, `pixel`: with normal noise, by timm's class, which
    draws other rectangles instead of one that doesn't fit.
    """
    if mode != "const":
        from timm.data.random_erasing import RandomErasing  # imports all of timm

        kind = "rand" if mode == "channel" else mode
        erasing = RandomErasing(probability, *area, mode=kind, device=images.device)  # type: ignore[no-untyped-call]
        with seed_python_and_numpy():
            erased: Tensor = erasing(images.clone())
        return erased
    batch, _, height, width = images.shape
    size = (area[0] + (area[1] - area[0]) * torch.rand(batch)) * height * width
    ratio = torch.exp((2 * torch.rand(batch) - 1) * torch.tensor(10 / 3).log())  # of 0.3 to 3.3, as in the paper
    tall = (size * ratio).sqrt().round().clamp(1, height)
    wide = (size / ratio).sqrt().round().clamp(1, width)
    top = (torch.rand(batch) * (height - tall + 1)).floor()
    left = (torch.rand(batch) * (width - wide + 1)).floor()
    tall[torch.rand(batch) >= probability] = 0
    return images.masked_fill(rectangles(images, top, top + tall, left, left + wide), 0.0)
