"""Decode only the part of a JPEG file that a crop needs.

    bytes -> header -> box -> rows up to the end of the box, at 1/1, 1/2, 1/4 or 1/8 -> cropped, resized -> uint8

Other files than plain JPEGs (8 bits, gray or three colors, upright, undamaged) are decoded completely. At full scale,
both ways give the same pixels, bit for bit. Huffman codes after the box are skipped by a header with fewer rows.
"""

import io
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from vitlab.data.decode import FRAMES, JPEG, check_size, decode, frame_size, jpeg_segments

try:
    import simplejpeg
except ImportError:  # the extra `jpeg`; without it, the same pixels are decoded more slowly
    simplejpeg = None

BICUBIC = v2.InterpolationMode.BICUBIC
FACTORS = (8, 4, 2)  # reductions that make libjpeg-turbo faster; 7/8 to 5/8 make it slower
MIN_OVERSAMPLING = 2  # the reduced side is at least this multiple of the final size
EXTRA_ROWS = 2  # below the box, since the colors of its last row are interpolated
# EXIF metadata that may have an orientation other than 1, in either byte order
ROTATED = re.compile(rb"(?s)\x01\x12(?!.{6}\0\x01)|\x12\x01(?!.{6}\x01\0)")
# libjpeg-turbo's message about codes after the last row; all others mean damage
EXTRA_CODES = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")


class Box(NamedTuple):
    """A part of an upright image, in its pixels."""

    top: int
    left: int
    height: int
    width: int


class PlainJpeg(NamedTuple):
    """A JPEG file that is decoded here."""

    width: int
    height: int
    at: int  # offset of the height in the file
    sequential: bool  # the codes are stored row after row, with nothing between them


def decode_crop(
    data: bytes,
    choose: Callable[[int, int], Box],
    size: tuple[int, int],
    interpolation: v2.InterpolationMode = BICUBIC,
    *,
    antialias: bool = True,
    scaled: bool = False,
) -> Tensor:
    """The part that `choose(height, width)` returns, resized, uint8 [3, *size].

    `scaled`: decode at 1/2, 1/4 or 1/8 if the box is at least four times `size`. `choose` is called once. Raises any
    kind of error, as `decode.decode` does.
    """
    plain = parse_plain_jpeg(data)
    if plain is None:
        image = decode(data)
        box = choose(image.shape[-2], image.shape[-1])
    else:
        check_size(plain.width, plain.height)
        box = choose(plain.height, plain.width)
        factor = reduction_factor(box, size) if scaled else 1
        box = Box(*(value // factor for value in box))
        image = decode_rows(data, plain, rows=(box.top + box.height) * factor, factor=factor)
    top, left, height, width = box
    # channels last and contiguous, which is resized faster
    part = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
    cropped: Tensor = v2.functional.resize(part, list(size), interpolation, antialias=antialias)
    return cropped[0]


def reduction_factor(box: Box, size: tuple[int, int]) -> int:
    """The factor by which the decoding of a box that is resized to `size` may be reduced."""
    limit = min(box.height / size[0], box.width / size[1]) / MIN_OVERSAMPLING
    return next((factor for factor in FACTORS if factor <= limit), 1)


def parse_plain_jpeg(data: bytes) -> PlainJpeg | None:
    """None for other formats, CMYK, 12 bits, images rotated by EXIF, and files without a header."""
    if data[:2] != JPEG:
        return None
    plain, markers = None, set()
    for marker, at, length in jpeg_segments(data):
        markers.add(marker)
        if marker == 0xE1 and data[at + 4 : at + 8] == b"Exif" and ROTATED.search(data, at + 8, at + 2 + length):
            return None
        if marker in FRAMES:
            bits, colors = data[at + 4], data[at + 9]
            if plain or marker > 0xC2 or bits != 8 or colors not in (1, 3):
                return None
            plain = PlainJpeg(*frame_size(data, at), at + 5, sequential=marker < 0xC2)
    # with restart markers, damage below the box would look like codes after the last row
    return plain._replace(sequential=False) if plain and 0xDD in markers else plain


def decode_rows(data: bytes, plain: PlainJpeg, *, rows: int, factor: int) -> Tensor:
    """At least the first `rows` of the file, reduced by `factor`, uint8 [3, h, w] in memory of [h, w, 3]."""
    pixels = None if simplejpeg is None else decode_fast(data, plain, rows=rows, factor=factor)
    if pixels is None and factor == 1:
        return decode(data)  # repairs it, or raises
    if pixels is None:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as opened:
            opened.draft("RGB", (plain.width // factor, plain.height // factor))
            pixels = np.array(opened.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_fast(data: bytes, plain: PlainJpeg, *, rows: int, factor: int) -> np.ndarray | None:
    """At least `rows`, uint8 [h, w, 3], decoded by simplejpeg; None for anything unusual."""
    rows += EXTRA_ROWS
    if rows < plain.height and plain.sequential:
        data = data[: plain.at] + rows.to_bytes(2, "big") + data[plain.at + 2 :]
    else:
        rows = plain.height
    height, width = -(-rows // factor), -(-plain.width // factor)
    pixels = np.empty((height, width, 3), np.uint8)
    try:
        if simplejpeg.decode_jpeg_header(data, height, width)[:2] != (height, width):
            return None
        simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, buffer=pixels)
    except ValueError as error:
        if rows == plain.height or not EXTRA_CODES.match(str(error)):
            return None
    return pixels
