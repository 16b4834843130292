"""A part of a JPEG file is what a full decoding has there, whatever the file is, and broken files stay errors."""

import io
import random
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import v2

from vitlab.data import jpeg
from vitlab.data.decode import decode
from vitlab.data.jpeg import Box, decode_crop, parse_plain_jpeg, reduction_factor

# torchvision 0.29, which `read_image` keeps quiet
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")

PHOTO = Image.fromarray(load_sample_image("china.jpg"))
SMALL = PHOTO.resize((160, 107))
BOX = Box(3, 5, 40, 60)


def jpeg_bytes(image: Image.Image = SMALL, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg_bytes(exif=exif)


def full_crop(data: bytes, box: Box = BOX, size: tuple[int, int] = (24, 32)) -> torch.Tensor:
    cropped: torch.Tensor = v2.functional.resized_crop(
        decode(data), *box, list(size), v2.InterpolationMode.BICUBIC, antialias=True
    )
    return cropped


KINDS = {
    "baseline": jpeg_bytes(),
    "progressive": jpeg_bytes(progressive=True),
    "restart markers": jpeg_bytes(restart_marker_rows=1),
    "no subsampling": jpeg_bytes(subsampling=0),
    "4:1:1": jpeg_bytes(subsampling="4:1:1"),
    "grey": jpeg_bytes(SMALL.convert("L")),
    "CMYK": jpeg_bytes(SMALL.convert("CMYK")),
    "upright": turned(1),
    "on its head": turned(3),
    "damaged EXIF": jpeg_bytes(exif=b"Exif\0\0MM\x01\x12 nonsense"),
}


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_crop_is_that_of_the_complete_image_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, kind: str, installed: bool
) -> None:
    if not installed:
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    data = KINDS[kind]
    sizes = []

    def choose(height: int, width: int) -> Box:
        sizes.append((height, width))
        return BOX

    assert torch.equal(decode_crop(data, choose, (24, 32)), full_crop(data))
    assert sizes == [tuple(decode(data).shape[-2:])]


def test_other_formats_are_cropped_too() -> None:
    buffer = io.BytesIO()
    SMALL.save(buffer, format="PNG")
    assert torch.equal(decode_crop(buffer.getvalue(), lambda *_: BOX, (24, 32)), full_crop(buffer.getvalue()))


def test_any_box_of_any_size_is_exact() -> None:
    chance = random.Random(0)
    for _ in range(60):
        height, width = chance.randint(1, 90), chance.randint(1, 90)
        data = jpeg_bytes(SMALL.crop((7, 7, 7 + width, 7 + height)), subsampling=chance.choice((0, 1, 2, "4:1:1")))
        tall, wide = chance.randint(1, height), chance.randint(1, width)
        box = Box(chance.randint(0, height - tall), chance.randint(0, width - wide), tall, wide)
        assert torch.equal(decode_crop(data, lambda *_, box=box: box, (24, 32)), full_crop(data, box))


def test_no_row_below_the_box_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    heights = []
    decoded = jpeg.decode_fast

    def seen(*arguments: Any, **options: Any) -> Any:
        pixels = decoded(*arguments, **options)
        heights.append(None if pixels is None else len(pixels))
        return pixels

    monkeypatch.setattr(jpeg, "decode_fast", seen)
    for kind in ("baseline", "grey", "progressive", "restart markers", "CMYK", "on its head"):
        decode_crop(KINDS[kind], lambda *_: BOX, (24, 32))
    assert heights == [45, 45, 107, 107], (
        "what isn't row after row is decoded complete, CMYK and turned files elsewhere"
    )


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restart markers"])
def test_a_broken_file_is_the_same_error_or_the_same_image(kind: str) -> None:
    """Damage below the box too: a file that a full decoding refuses is never a picture here."""
    chance, data = random.Random(1), KINDS[kind]
    outcomes = set()
    for number in range(120):
        at = chance.randrange(600, len(data))
        broken = bytearray(data)
        if number % 4 == 0:
            broken = broken[:at]
        elif number % 4 == 1:
            broken[at:] = bytes(len(data) - at)
        elif number % 4 == 2:
            del broken[at : at + chance.randrange(1, 500)]
        else:
            broken[at] = chance.randrange(256)
        try:
            expected = full_crop(bytes(broken))
        except Exception:
            outcomes.add("error")
            with pytest.raises(Exception, match=r"\w"):
                decode_crop(bytes(broken), lambda *_: BOX, (24, 32))
        else:
            outcomes.add("image")
            assert torch.equal(decode_crop(bytes(broken), lambda *_: BOX, (24, 32)), expected)
    assert outcomes == {"error", "image"}


@pytest.mark.parametrize(("side", "factor"), [(383, 1), (384, 2), (767, 2), (768, 4), (1536, 8), (9999, 8)])
def test_a_smaller_decoding_leaves_twice_what_is_needed(side: int, factor: int) -> None:
    assert reduction_factor(Box(0, 0, side, 10_000), (96, 96)) == factor


def test_a_smaller_decoding_is_close_and_the_same_without_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    data, box = jpeg_bytes(PHOTO), Box(21, 33, 401, 500)
    near = decode_crop(data, lambda *_: box, (96, 96), scaled=True)
    exact = full_crop(data, Box(20, 32, 400, 500), (96, 96))
    assert not torch.equal(near, exact)
    assert (near.float() - exact.float()).abs().mean() < 1.2, "of 255"
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert torch.equal(decode_crop(data, lambda *_: box, (96, 96), scaled=True), near)


def test_a_size_is_refused_before_anything_is_decoded() -> None:
    data = bytearray(jpeg_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(ValueError, match=r"[\d,]+ pixels; make it smaller"):
        decode_crop(bytes(data), lambda *_: BOX, (24, 32))


def test_only_what_may_be_turned_is_left_to_others() -> None:
    assert parse_plain_jpeg(turned(1)) is not None
    assert all(parse_plain_jpeg(turned(orientation)) is None for orientation in range(2, 9))
