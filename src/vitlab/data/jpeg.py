"""A part of an image file at the size a network sees: of a JPEG file no more is decoded than that part needs.

    bytes -> header -> the box is chosen -> rows down to the box's end, at 1/1, 1/2, 1/4 or 1/8 -> cut, resized -> uint8

Whatever isn't a plain JPEG file (8 bits, grey or three colours, upright, whole) is decoded by `decode.decode` and cut
then, with the same errors. At full scale both ways give the same pixels, bit for bit, with any of the decoders:
simplejpeg, torchvision and Pillow are all libjpeg-turbo.

Huffman codes can't be skipped, but those after the box can: a file whose header claims fewer rows is decoded that far.
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
except ImportError:  # the extra `jpeg`; without it the same pixels come more slowly
    simplejpeg = None

BICUBIC = v2.InterpolationMode.BICUBIC
FACTORS = (8, 4, 2)  # a side by these is what libjpeg-turbo decodes faster than all of it; 7/8 to 5/8 take longer
REDUCED = 2  # the least that is left of a side then, as a multiple of what it is resized to
BEYOND = 2  # rows below the box that its last row needs: colours are interpolated between neighbours
# What libjpeg-turbo says, first of all, of codes up to the file's end that it wasn't asked for; all else is damage
LEFT_OVER = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")


class Box(NamedTuple):
    """A part of an upright image, in pixels of the whole one."""

    top: int
    left: int
    height: int
    width: int


class Plain(NamedTuple):
    """A JPEG file that is decoded here: its size, and where its header says how many rows there are."""

    width: int
    height: int
    at: int
    sequential: bool  # the codes are row after row, with nothing between them


def decode_crop(
    data: bytes,
    choose: Callable[[int, int], Box],
    size: tuple[int, int],
    interpolation: v2.InterpolationMode = BICUBIC,
    *,
    scaled: bool = False,
) -> Tensor:
    """The part that `choose(height, width)` names, resized with antialiasing to `size`: uint8 [3, *size].

    `scaled`: a box of at least four times `size` comes from a JPEG decoded at 1/2, 1/4 or 1/8, and lies on that grid.
    Raises all kinds of errors for what isn't an image, as `decode.decode` does; `choose` is called once.
    """
    plain = plain_jpeg(data)
    if plain is None:
        image = decode(data)
        box = choose(image.shape[-2], image.shape[-1])
    else:
        check_size(plain.width, plain.height)
        box = choose(plain.height, plain.width)
        factor = factor_for(box, size) if scaled else 1
        box = Box(*(value // factor for value in box))
        image = decode_rows(data, plain, rows=(box.top + box.height) * factor, factor=factor)
    top, left, height, width = box
    part = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
    cropped: Tensor = v2.functional.resize(part, list(size), interpolation, antialias=True)  # faster on what is whole
    return cropped[0]


def factor_for(box: Box, size: tuple[int, int]) -> int:
    """How many times smaller a box may be decoded that is resized to `size`."""
    most = min(box.height / size[0], box.width / size[1]) / REDUCED
    return next((factor for factor in FACTORS if factor <= most), 1)


def plain_jpeg(data: bytes) -> Plain | None:
    """None for what isn't for this file: another format, CMYK, 12 bits, turned by its EXIF tag, without a header."""
    if data[:2] != JPEG:
        return None
    found, markers = None, set()
    for marker, at, length in jpeg_segments(data):
        markers.add(marker)
        if marker == 0xE1 and may_be_turned(data[at + 4 : at + 2 + length]):
            return None
        if marker in FRAMES:
            bits, colours = data[at + 4], data[at + 9]
            if found or marker > 0xC2 or bits != 8 or colours not in (1, 3):
                return None
            found = Plain(*frame_size(data, at), at + 5, sequential=marker < 0xC2)
    # between restart markers, damage below the box would look like codes that weren't asked for
    return found._replace(sequential=False) if found and 0xDD in markers else found


def may_be_turned(metadata: bytes) -> bool:
    """Whether something in EXIF metadata looks like an orientation other than 1, in either order of bytes."""
    if metadata[:4] != b"Exif":
        return False
    for tag, upright in ((b"\x01\x12", b"\0\x01"), (b"\x12\x01", b"\x01\0")):
        at = -1
        while (at := metadata.find(tag, at + 1)) >= 0:
            if metadata[at + 8 : at + 10] != upright:
                return True
    return False


def decode_rows(data: bytes, plain: Plain, *, rows: int, factor: int) -> Tensor:
    """uint8 [3, h, w] in memory of [h, w, 3]: the first `rows` of the file or more, smaller by `factor`."""
    pixels = None
    if simplejpeg is not None:
        pixels = decode_fast(data, plain, rows=rows, factor=factor)
    if pixels is None and factor == 1:
        return decode(data)  # mends, or tells what is wrong
    if pixels is None:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as opened:
            opened.draft("RGB", (plain.width // factor, plain.height // factor))
            pixels = np.array(opened.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_fast(data: bytes, plain: Plain, *, rows: int, factor: int) -> np.ndarray | None:
    """uint8 [h, w, 3], of `rows` or more as stored one after the other; None where anything is odd."""
    rows += BEYOND
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
        if rows == plain.height or not LEFT_OVER.match(str(error)):
            return None
    return pixels
