"""Random Erasing, and rectangles in the images of a batch."""

from typing import Literal

import torch
from torch import Tensor


def first_fit(fits: Tensor, *values: Tensor) -> list[Tensor]:
    """Of [tries, B] draws the first that fits, [B]; the first of all if none does."""
    first = fits.int().argmax(0, keepdim=True)
    return [value.gather(0, first)[0] for value in values]


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

    `const`: with zeros; sides are clipped to the image. `channel` and `pixel`: with normal noise, drawn on the images'
    device; of a rectangle that doesn't fit, up to nine others are drawn, as in timm.
    """
    batch, channels, height, width = images.shape
    tries = 1 if mode == "const" else 10
    size = (area[0] + (area[1] - area[0]) * torch.rand(tries, batch)) * height * width
    ratio = torch.exp((2 * torch.rand(tries, batch) - 1) * torch.tensor(10 / 3).log())  # of 0.3 to 3.3, as in the paper
    tall, wide = (size * ratio).sqrt().round(), (size / ratio).sqrt().round()
    if mode == "const":
        tall, wide = tall[0].clamp(1, height), wide[0].clamp(1, width)
    else:
        fits = (tall < height) & (wide < width)
        tall, wide = first_fit(fits, tall * fits, wide)
    top = (torch.rand(batch) * (height - tall + 1)).floor()
    left = (torch.rand(batch) * (width - wide + 1)).floor()
    tall[torch.rand(batch) >= probability] = 0
    if mode == "const":
        return images.masked_fill(rectangles(images, top, top + tall, left, left + wide), 0.0)
    images, boxes = images.clone(), torch.stack([top, top + tall, left, left + wide], dim=1).int().tolist()
    for row in tall.nonzero().flatten().tolist():
        start, stop, first, last = boxes[row]
        part = images[row, :, start:stop, first:last]
        part.copy_(torch.randn(part.shape if mode == "pixel" else (channels, 1, 1), device=images.device))
    return images
