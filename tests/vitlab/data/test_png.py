"""Damage of PNG files that Pillow ignores, with every kind of pixel."""

import io
import struct
import zlib

import pytest
import torch
from PIL import Image

from vitlab.data.decode import decode
from vitlab.data.png import SIGNATURE, check_pixels, check_png, pixel_bytes

WIDTH, HEIGHT = 11, 9
# mode of Pillow -> bits per value and color type of the file
KINDS = {"1": (1, 0), "L": (8, 0), "I;16": (16, 0), "RGB": (8, 2), "P": (8, 3), "LA": (8, 4), "RGBA": (8, 6)}


def part(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels: bytes, bits: int = 8, color: int = 2, interlaced: int = 0) -> bytes:
    """A file of WIDTH x HEIGHT whose compressed pixels are these, under right checksums."""
    header = part(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, color, 0, 0, interlaced))
    palette = part(b"PLTE", bytes(range(12))) if color == 3 else b""
    return SIGNATURE + header + palette + part(b"IDAT", zlib.compress(pixels)) + part(b"IEND", b"")


@pytest.mark.parametrize("mode", KINDS)
def test_the_size_of_the_pixels_is_that_of_a_file_that_pillow_writes(mode: str) -> None:
    Image.new(mode, (WIDTH, HEIGHT)).save(file := io.BytesIO(), "PNG")
    data = file.getvalue()
    check_png(data)
    check_pixels(data)
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    assert pixel_bytes(data[16:29]) == len(zlib.decompress(data[start : start + length]))


@pytest.mark.parametrize(("bits", "color"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("interlaced", [0, 1])
def test_missing_rows_are_an_error_and_black_ones_are_not(bits: int, color: int, interlaced: int) -> None:
    size = pixel_bytes(struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, color, 0, 0, interlaced))
    black, short = png(bytes(size), bits, color, interlaced), size - size // HEIGHT * 2
    assert decode(black).shape == (3, HEIGHT, WIDTH)
    with pytest.raises((ValueError, OSError), match=r"truncated"):
        decode(png(bytes(short), bits, color, interlaced))
    with pytest.raises(ValueError, match=rf"it is truncated: its pixels are {short} bytes of {size}$"):
        check_pixels(png(bytes(short), bits, color, interlaced))


def test_a_cut_between_rows_is_found_whatever_the_rows_show() -> None:
    row = b"\0" + b"\x50" * (3 * WIDTH)
    assert torch.equal(decode(png(row * HEIGHT)), torch.full((3, HEIGHT, WIDTH), 0x50, dtype=torch.uint8))
    for rows in range(HEIGHT):
        with pytest.raises((ValueError, OSError), match="truncated"):
            decode(png(row * rows))


def test_wrong_checksums_and_a_missing_end_are_errors() -> None:
    data = png(bytes(1000))
    with pytest.raises(ValueError, match="the checksum of a part b'IDAT' is wrong"):
        check_png(data.replace(b"IDAT\x78", b"IDAT\x79"))
    for cut in (*range(1, 30), len(data) - len(SIGNATURE)):
        with pytest.raises(ValueError, match="the end of the PNG file is missing"):
            check_png(data[:-cut])
