"""Images as users have them - paths, Pillow's, arrays, tensors, folders - become pixels."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitlab.data import decode
from vitlab.data.file_list import images_below

Images = Any  # a path of a file or folder, an image of Pillow, an array, a tensor, or any iterable of them


def flat_images(images: Images) -> Iterator[Any]:
    """The images of a nested list one by one, those of a folder by name; a batch [N, C, H, W] remains one."""
    if isinstance(images, str | Path) and Path(images).expanduser().is_dir():
        yield from sorted(images_below(str(Path(images).expanduser()), {}, set()))
    elif isinstance(images, str | Path | Image.Image | np.ndarray | Tensor) or not isinstance(images, Iterable):
        yield images
    else:
        for image in images:
            yield from flat_images(image)


def pixels(image: Any, channels: int) -> Tensor:
    """The pixels of an image, uint8 [C, H, W]; a float tensor is returned as it is.

    Arrays are [H, W] or [H, W, C], tensors [H, W] or [C, H, W], or batches of them.
    """
    if isinstance(image, str | Path):
        image = decode.read_image(str(Path(image).expanduser()))
    elif isinstance(image, Image.Image):
        decode.check_size(*image.size)
        decode.check_mode(image)
        image = decode.pixels(image)
    elif isinstance(image, np.ndarray):
        last = image.ndim > 2 and image.shape[-1] in (1, 3, 4)
        if last and image.shape[-1] == 4:  # transparent over white, as in files
            one = image.ndim == 3
            parts = [pixels(Image.fromarray(each), channels) for each in ([image] if one else image)]
            return parts[0] if one else torch.stack(parts)
        image = torch.from_numpy(np.array(np.moveaxis(image, -1, -3) if last else image))
    if not isinstance(image, Tensor):
        raise TypeError(f"{type(image).__name__} is no image; pass a path, an image of Pillow, an array or a tensor")
    image = image[None] if image.ndim == 2 else image
    if image.ndim not in (3, 4) or (image.dtype != torch.uint8 and not image.is_floating_point()):
        kind = f"{str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
        raise ValueError(f"an image of {kind}; pass uint8 [C, H, W], or what `transform` returns, float [C, H, W]")
    return image if image.is_floating_point() else with_channels(image, channels)


def with_channels(image: Tensor, channels: int) -> Tensor:
    """uint8 [..., C, H, W] with the channels of a network: gray is repeated, colors become their luminance."""
    if image.shape[-3] == channels:
        return image
    if image.shape[-3] == 1:
        return image.expand(*image.shape[:-3], channels, *image.shape[-2:])
    if (image.shape[-3], channels) == (3, 1):  # as Pillow converts; equal colors remain
        weights = torch.tensor([19595, 38470, 7471], device=image.device).view(3, 1, 1)
        gray: Tensor = ((image * weights).sum(dim=-3, keepdim=True) + 2**15) >> 16
        return gray.to(torch.uint8)
    raise ValueError(f"an image of {image.shape[-3]} channels; the network takes {channels}")
