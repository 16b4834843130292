"""Encode an image as it is packed: its own bytes if possible, else downscaled and encoded again."""

import io

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from vitlab.data.decode import decode, error_reason, image_is_at_fault, quiet, read_bytes
from vitlab.data.rows import InvalidImage
from vitlab.data.source import Split


def image_bytes(split: Split, index: int, *, size: int | None, quality: int | None) -> bytes:
    """The image at `index` of a split, upright, with a shorter side of at most `size` pixels; never enlarged.

    Upright JPEG and PNG files that are small enough keep their bytes, as do all files without a `size`. Others become
    JPEG of a `quality`, or PNG without one, and images in memory PNG. Raises `InvalidImage` if the image is missing or
    can't be decoded, and another error if the machine is at fault.
    """
    if split.files is None:
        return encode(downscale(split.images_at(torch.tensor([index]))[0], size), None)
    data = read_bytes(split.files[index])
    try:
        with quiet():
            image = decode(data)
            if size is None or (min(image.shape[-2:]) <= size and is_upright(data)):
                return data
            return encode(downscale(image, size), quality)
    except Exception as error:  # Pillow raises a dozen kinds
        if image_is_at_fault(error):
            raise InvalidImage(error_reason(error)) from error
        raise


def is_upright(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return image.format in ("JPEG", "PNG") and image.getexif().get(0x0112, 1) == 1  # orientation


def downscale(image: Tensor, size: int | None) -> Tensor:
    """uint8 [C, H, W] with a shorter side of at most `size`."""
    if size is None or (shorter := min(image.shape[-2:])) <= size:
        return image
    sides = [max(size, round(side * (size / shorter))) for side in image.shape[-2:]]
    smaller: Tensor = v2.functional.resize(image, sides, v2.InterpolationMode.BICUBIC, antialias=True)
    return smaller


def encode(image: Tensor, quality: int | None) -> bytes:
    """uint8 [1 or 3, H, W] as JPEG, or as PNG without a `quality`."""
    options = {"format": "PNG"} if quality is None else {"format": "JPEG", "quality": quality}
    v2.functional.to_pil_image(image).save(file := io.BytesIO(), **options)
    return file.getvalue()
