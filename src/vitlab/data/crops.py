"""Random crops of batches, drawn per image. B images, C channels, H x W pixels, h x w pixels of the crop, uint8."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

Kernel = Literal["bicubic", "bilinear", "random"]
REFLECTION = 4  # pixels around the image of `crop=simple`, as in DeiT III
RATIOS = (3 / 4, 4 / 3)  # of width to height


def crop_and_flip(
    images: Tensor, padding: int, flip: bool, *, size: tuple[int, int] | None = None, mode: str = "constant"
) -> Tensor:
    """Shift each image by up to `padding` pixels, and mirror half of them if `flip`.

    Around it, it is black, or reflected with `mode="reflect"`. `size` of the result: None: the images'.
    """
    batch, (height, width) = len(images), size or images.shape[-2:]
    padded = F.pad(images, (padding,) * 4) if mode == "constant" else tv.pad(images, [padding], padding_mode=mode)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view of all shifts
    top, left = (torch.randint(windows.shape[dim], (batch, 1)).flatten() for dim in (2, 3))
    mirrored = torch.rand(batch, 1).flatten() < 0.5 if flip else torch.zeros(batch, dtype=torch.bool)
    if images.device.type == "cpu":  # NumPy copies rows where torch copies pixels: four times as fast
        cut = windows.numpy()[np.arange(batch), :, top.numpy(), left.numpy()]
        cut[mirrored.numpy()] = torch.from_numpy(cut)[mirrored].flip(3).numpy()
        return torch.from_numpy(cut)
    index, top, left, mirrored = (part.to(images.device) for part in (torch.arange(batch), top, left, mirrored))
    images = windows[index, :, top, left]
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def cover(image: Tensor, size: tuple[int, int], mode: v2.InterpolationMode, *, antialias: bool = True) -> Tensor:
    """[..., H, W] resized to just cover `size`."""
    # resizing a line of 1 x 100,000 pixels would need 20 GB: first crop such a side
    longest = 64 * min(image.shape[-2:]) * -(-max(size) // min(size))
    if max(image.shape[-2:]) > longest:
        image = tv.center_crop(image, [min(side, longest) for side in image.shape[-2:]])
    height, width = image.shape[-2:]
    if size[0] != size[1]:  # rounded as timm does
        ratio = min(height / size[0], width / size[1])
        new = [round(height / ratio), round(width / ratio)]
    elif height <= width:  # height binds
        new = [size[0], size[0] * width // height]
    else:
        new = [size[0] * height // width, size[0]]
    resized: Tensor = tv.resize(image, new, mode, antialias=antialias)
    return resized


def random_resized_crop(
    images: Tensor, size: tuple[int, int], scale: tuple[float, float], kernel: Kernel, *, antialias: bool = True
) -> Tensor:
    """Apply torchvision's RandomResizedCrop with draws per image, also of the kernel if it is random."""
    top, left, tall, wide = inception_boxes(len(images), (images.shape[-2], images.shape[-1]), scale)
    is_bicubic = torch.full((len(images),), kernel == "bicubic")
    if kernel == "random":
        is_bicubic = torch.rand(len(images)) < 0.5
    draws = torch.stack([top, left, tall, wide, is_bicubic]).to(images.device)
    few = 8 if images.device.type == "cpu" else len(images)  # images, to stay in the processor's cache
    parts = []
    for first in range(0, len(images), few):
        part, (top, left, tall, wide, cubic) = images[first : first + few], draws[:, first : first + few]
        rows = resize_weights(top, tall, images.shape[-2], size[0], cubic.bool(), antialias)
        cols = resize_weights(left, wide, images.shape[-1], size[1], cubic.bool(), antialias)
        parts.append(resample(part, rows, cols))
    return torch.cat(parts)


def inception_boxes(count: int, size: tuple[int, int], scale: tuple[float, float]) -> Tensor:
    """Boxes [4, count] (top, left, height, width) of a share of the area in the range `scale`, from ten tries each."""
    height, width = size
    area = height * width * torch.empty(10, count).uniform_(*scale)
    ratio = torch.empty(10, count).uniform_(*torch.tensor(RATIOS).log().tolist()).exp()
    wide, tall = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    first = fits.int().argmax(0), torch.arange(count)
    wide, tall = wide[first], tall[first]
    top, left = (torch.rand(count) * (height - tall + 1)).floor(), (torch.rand(count) * (width - wide + 1)).floor()
    boxes = torch.stack([top, left, tall, wide])
    # else the central one of a ratio within the range
    wide_, tall_ = min(width, round(height * RATIOS[1])), min(height, round(width / RATIOS[0]))
    central = torch.tensor([(height - tall_) // 2, (width - wide_) // 2, tall_, wide_])
    return torch.where(fits.any(0), boxes, central[:, None])


def resize_weights(start: Tensor, length: Tensor, source: int, size: int, cubic: Tensor, antialias: bool) -> Tensor:
    """[B, size, source], by which lines of `source` pixels become `size` pixels of the parts [start, start + length).

    `start`, `length` and `cubic` (or linear) are [B]. With antialiasing, the kernels are Pillow's.
    """
    ratio = (length / size)[:, None, None]
    pixel, place = (torch.arange(count, device=start.device) + 0.5 for count in (source, size))
    distance = pixel - start[:, None, None] - place[:, None] * ratio
    x = (distance / ratio.clamp(min=1) if antialias else distance).abs()
    kernel = torch.where(x < 1, 1 + x * x * (1.5 * x - 2.5), 2 + x * (-4 + x * (2.5 - 0.5 * x)))
    weights = torch.where(cubic[:, None, None], kernel * (x < 2), (1 - x).clamp(min=0))
    part = pixel - start[:, None]
    weights *= ((part > 0) & (part < length[:, None]))[:, None]
    return weights / weights.sum(2, keepdim=True)


def resample(images: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """[B, C, h, w] by weights of rows [B, h, H] and columns [B, w, W], rounded after each, as torch does."""
    across = (images.float() @ cols.transpose(1, 2)[:, None]).add_(0.5).floor_().clamp_(0, 255)
    return (rows[:, None] @ across).add_(0.5).clamp_(0, 255).to(torch.uint8)
