"""Decode image files to pixels.

torchvision decodes JPEG faster than Pillow. Its PNG decoder is not used: a damaged file ends the process with a
segmentation fault (0.29). The size in the header is checked before a file is decoded.
"""

import errno
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2

from vitlab.data import png
from vitlab.data.rows import InvalidImage, Row

try:
    from torchvision.io import decode_image
except ImportError:  # its removal is announced; Pillow gives the same pixels, more slowly
    decode_image = None

MAX_PIXELS = 2**27  # 134 megapixels: about 1.2 GB of memory while an image is decoded; Pillow's limit is higher
# The formats of the listed suffixes, and no others: Pillow would pass an EPS file to another program.
Image.init()  # load all plugins now, not in a thread that opens the first WebP file
FORMATS = tuple(name for name in ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "PPM", "TIFF") if name in Image.OPEN)
JPEG = b"\xff\xd8"
JPEG_START = 8192  # bytes that are read for the size of a JPEG file; of a longer header Pillow reads more
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers of headers with the image's size
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"\0\0\0\0IEND\xaeB`\x82"}
# System errors that are about one path
PATH_ERRORS = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES)
# Messages of out-of-memory errors without an exception class
HOST_OUT_OF_MEMORY = (
    *("DefaultCPUAllocator: can't allocate memory", "not enough memory", "std::bad_alloc"),
    "could not create a primitive",  # oneDNN's
)
CUDA_OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
DEVICE_OUT_OF_MEMORY = (*CUDA_OUT_OF_MEMORY, "HIP out of memory", "MPS backend out of memory")


class UnreadableImage(ValueError):
    """A file that can't be read or decoded; the message begins with its path."""

    def __init__(self, message: str) -> None:  # a worker's message has its traceback: keep the last line
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def read_image(path: str, decoder: Callable[[bytes], Tensor] | None = None) -> Tensor:
    """The first frame, upright, with transparency over white, uint8 [3, H, W]; `decoder` replaces `decode`."""
    try:
        data = read_bytes(path)
    except OSError as error:
        remedy = "restore it or its disk, and resume=auto resumes the run"
        raise UnreadableImage(f"{path} can't be read ({error_reason(error)}); {remedy}") from error
    try:
        with quiet():
            return (decoder or decode)(data)
    except Exception as error:  # Pillow raises a dozen kinds
        remedy = "replace it, or find all bad files at once with data.scan=decode, or set data.on_error=skip"
        raise UnreadableImage(f"{path} can't be decoded ({error_reason(error)}); {remedy}") from error


def read_bytes(path: str) -> bytes:
    """The content of a regular file, or of a row. Raises `OSError`."""
    with open_regular(path) as file:
        return file.read()


def open_regular(path: str) -> BinaryIO:
    """Open a regular file, or a row. Raises `InvalidImage` if the path is at fault, or `OSError`."""
    if isinstance(path, Row):
        return io.BytesIO(path.read())
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 a million; opening a named pipe would block
            raise InvalidImage("it is no regular file")
        return open(path, "rb")  # noqa: PTH123 a million
    except OSError as error:
        gone = error.errno == errno.ENOENT and not Path(path).parent.is_dir()  # so a disk may be gone
        if error.errno in PATH_ERRORS and not gone:
            raise InvalidImage(error.errno, error.strerror, path) from error
        raise


def image_is_at_fault(error: Exception) -> bool:
    """Whether the image caused an error, rather than memory, a limit, a disk or a network."""
    if is_out_of_memory(error):
        return False
    # system errors have a number; Pillow's `OSError` of a damaged file has none
    return isinstance(error, InvalidImage) or not isinstance(error, OSError) or error.errno is None


def read_error(path: object, error: Exception, remedy: str) -> UnreadableImage:
    """The error to raise if the image may be intact."""
    reason = f"({error_reason(error)}). The image may be intact, so it is not skipped"
    return UnreadableImage(f"{path} can't be read {reason}; {remedy}")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    messages = HOST_OUT_OF_MEMORY + DEVICE_OUT_OF_MEMORY
    return isinstance(error, RuntimeError) and any(message in str(error) for message in messages)


def error_reason(error: Exception) -> str:
    """The error in one line."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is no image of the formats {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings of the decoders; not thread-safe."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_header(path: str) -> None:
    """Check the header and the end of a file, under `quiet`; decode it if the end is not that of its format. Raises."""
    with open_regular(path) as file:
        if not file.seek(0, os.SEEK_END):
            raise ValueError("the file is empty")
        if is_plain_jpeg(file):
            return
        file.seek(0)
        with Image.open(file, formats=FORMATS) as image:
            check_size(*image.size)
            check_mode(image)
            end = ENDS.get(image.format or "", b"")  # Pillow opens no WEBP file that is truncated
            file.seek(-len(end), os.SEEK_END)
            if file.read() != end:
                file.seek(0)
                decode(file.read())


def is_plain_jpeg(file: BinaryIO) -> bool:
    """Whether a file begins with a JPEG header of 8 bits and a size within the limit, and ends as JPEG does.

    In a third of Pillow's time; what isn't plain is for Pillow to judge.
    """
    file.seek(0)
    data = file.read(JPEG_START)
    frame = next((at for marker, at, _ in jpeg_segments(data) if marker in FRAMES), None) if data[:2] == JPEG else None
    if frame is None or data[frame + 1] > 0xC2 or data[frame + 4] != 8 or data[frame + 9] not in (1, 3):
        return False
    width, height = frame_size(data, frame)
    file.seek(-2, os.SEEK_END)
    return 0 < width * height <= MAX_PIXELS and file.read() == ENDS["JPEG"]


def check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"it has no pixels: {width} x {height}")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} are more than {MAX_PIXELS:,} pixels; make it smaller")


def check_mode(image: Image.Image) -> None:
    if image.mode in ("I", "F") and image.format != "PNG":
        raise ValueError(f"its pixels are of mode {image.mode}; save it with 8 bits per channel")


def decode(data: bytes) -> Tensor:
    """The pixels that `read_image` returns. Raises any kind of error."""
    if not data:
        raise ValueError("the file is empty")
    if data[:2] == JPEG and decode_image is not None:
        check_size(*jpeg_size(data))
        try:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            image: Tensor = decode_image(encoded, apply_exif_orientation=True)
        except RuntimeError:
            pass  # Pillow reads it, or has a better error
        else:
            if image.shape[0] != 4:  # torchvision converts CMYK differently from Pillow
                return image.expand(3, -1, -1)
    if data.startswith(png.SIGNATURE):
        png.check_png(data)
    return decode_with_pillow(data)


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(width, height) in the frame's header, which is searched as libjpeg does."""
    for marker, at, _ in jpeg_segments(data):
        if marker in FRAMES:
            return frame_size(data, at)
    raise ValueError("it is a JPEG file without an image, or cut off before it")


def frame_size(data: bytes, at: int) -> tuple[int, int]:
    return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, offset, length) of the segments before the pixels."""
    at = 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 9:
        marker = data[at + 1]
        if marker in (0xD9, 0xDA):  # the end, or pixels
            break
        if marker == 0xFF:  # a filling byte
            at += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # markers without a segment
            at += 2
        else:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            yield marker, at, length
            at += 2 + length


def decode_with_pillow(data: bytes) -> Tensor:
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        check_size(*opened.size)
        check_mode(opened)
        opened.load()
        is_png, (width, height) = data.startswith(png.SIGNATURE), opened.size
        # missing rows are zeros; of an interlaced image also between others
        if is_png and (opened.info.get("interlace") or not any(opened.crop((0, height - 1, width, height)).tobytes())):
            png.check_pixels(data)
        return pixels(opened)


def pixels(opened: Image.Image) -> Tensor:
    """The pixels of an image of Pillow, as `read_image` returns those of a file."""
    image = opened
    with suppress(Exception):  # damaged metadata; the pixels are intact
        if opened.getexif().get(0x0112, 1) != 1:
            image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):  # 16 bits; in a PNG file, Pillow before 11 has mode I
        return torch.from_numpy((np.asarray(image) // 257).astype(np.uint8)).expand(3, -1, -1)
    if image.has_transparency_data:
        # in parts: products need four times the memory
        rows = v2.functional.pil_to_tensor(image.convert("RGBA")).split(256, dim=1)
        return torch.cat([over_white(part) for part in rows], dim=1)
    rgb: Tensor = v2.functional.pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))
    return rgb


def over_white(rgba: Tensor) -> Tensor:
    *colors, alpha = rgba.to(torch.int32)
    blended: Tensor = (torch.stack(colors) * alpha + 255 * (255 - alpha) + 127) // 255
    return blended.to(torch.uint8)
