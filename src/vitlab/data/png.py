"""Find damage of PNG files that Pillow ignores: wrong checksums, and pixels that are missing."""

import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # values of a pixel, by color type
# Interlaced images are stored in seven passes: the first column and row of each, and its steps between them
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def check_png(data: bytes) -> None:
    """Raise `ValueError` for wrong checksums and a missing end."""
    for kind, part, checksum in chunks(data):
        if zlib.crc32(part, zlib.crc32(kind)) != checksum:
            raise ValueError(f"it is damaged: the checksum of a part {kind!r} is wrong")
        if kind == b"IEND":
            return
    raise ValueError("it is truncated: the end of the PNG file is missing")


def check_pixels(data: bytes) -> None:
    """Raise `ValueError` if the file's compressed pixels end before the image's last one: the others would be black."""
    parts = list(chunks(data))
    size = pixel_bytes(bytes(parts[0][1]))
    # of an animation, IDAT is the first frame
    pixels = zlib.decompressobj().decompress(b"".join(part for kind, part, _ in parts if kind == b"IDAT"), size)
    if len(pixels) < size:
        raise ValueError(f"it is truncated: its pixels are {len(pixels):,} bytes of {size:,}")


def chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """(kind, content, checksum) of the complete parts of the file."""
    view, at = memoryview(data), len(SIGNATURE)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(view[at : at + 4], "big")
        if end + 4 > len(data):
            return
        yield bytes(view[at + 4 : at + 8]), view[at + 8 : end], int.from_bytes(view[end : end + 4], "big")
        at = end + 4


def pixel_bytes(header: bytes) -> int:
    """The size of all rows, each with a byte for its filter, from the part IHDR."""
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    bits, interlaced = header[8] * SAMPLES[header[9]], header[12]
    total = 0
    for left, top, across, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        total += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    return total
