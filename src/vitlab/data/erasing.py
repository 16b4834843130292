"""Random Erasing of batches."""

from typing import Literal

import torch
from torch import Tensor

from vitlab.data.sampler import seed_python_and_numpy


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
