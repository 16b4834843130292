"""One image file to pixels: every format and mode, and every kind of damage."""

import errno
import io
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from torchvision.transforms import v2

from vitlab.data import decode
from vitlab.data.decode import UnreadableImage, read_image
from vitlab.data.rows import InvalidImage

PHOTO = Image.fromarray(load_sample_image("china.jpg")).resize((160, 107))


def pillow_pixels(image: Image.Image) -> torch.Tensor:
    pixels: torch.Tensor = v2.functional.pil_to_tensor(image.convert("RGB"))
    return pixels


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


WRITABLE = {"JPEG": "RGB L CMYK 1", "PNG": "RGB L P 1", "BMP": "RGB L P 1", "GIF": "RGB L P 1"}
WRITABLE |= {"TIFF": "RGB L CMYK P 1", "PPM": "RGB L 1", "WEBP": "RGB L"}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("format", "mode"), [(format, mode) for format, modes in WRITABLE.items() for mode in modes.split()]
)
def test_every_format_and_mode_decodes_as_pillow_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, mode: str, fast: bool
) -> None:
    if not fast:
        monkeypatch.setattr(decode, "decode_image", None)  # a torchvision of the future
    path = tmp_path / "image"
    path.write_bytes(encoded(PHOTO.convert(mode), format))
    pixels = read_image(str(path))
    assert pixels.dtype == torch.uint8
    with Image.open(path) as opened:
        assert torch.equal(pixels, pillow_pixels(opened))


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    drawing = PHOTO.convert("RGBA")
    drawing.putalpha(Image.linear_gradient("L").resize(PHOTO.size))
    white = Image.alpha_composite(Image.new("RGBA", PHOTO.size, "white"), drawing)
    drawing.save(path)
    difference = read_image(str(path)).int() - pillow_pixels(white).int()
    assert difference.abs().max() <= 1

    drawing.convert("LA").save(path)
    grey = read_image(str(path))
    assert grey.shape == (3, PHOTO.height, PHOTO.width)
    assert grey[:, 0].min() > 250, "the first row is transparent"

    palette = PHOTO.convert("P")
    clear = palette.getpixel((0, 0))
    palette.save(path, transparency=clear)
    assert read_image(str(path))[:, 0, 0].tolist() == [255, 255, 255]


def test_every_color_is_blended_to_the_nearest_value() -> None:
    color, alpha = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    blended = decode.over_white(torch.stack([color, color, color, alpha]).to(torch.uint8))
    exact = (color * alpha + 255 * (255 - alpha)).double() / 255
    assert torch.equal(blended, exact.round().to(torch.uint8).expand(3, -1, -1))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to the right
    for suffix in ("jpg", "webp"):
        path = tmp_path / f"image.{suffix}"
        PHOTO.save(path, exif=exif, quality=95)
        turned = pillow_pixels(PHOTO.transpose(Image.Transpose.ROTATE_270))
        pixels = read_image(str(path))
        assert pixels.shape == turned.shape
        assert (pixels.float() - turned.float()).abs().mean() < 8


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    values = (load_digits().images[0] * 4095).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert read_image(str(tmp_path / "deep.png"))[0].tolist() == (values // 257).tolist()
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    assert read_image(str(tmp_path / "deep.tiff"))[0].tolist() == (values // 257).tolist()
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="of mode F; save it with 8 bits"):
        read_image(str(tmp_path / "float.tiff"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_broken_image_is_named(tmp_path: Path, format: str) -> None:
    data = encoded(PHOTO, format)
    path = tmp_path / f"broken.{format.lower()}"
    for broken in (data[: len(data) // 2], data[:20], b"", b"no image at all"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=f"{path.name} can't be decoded"):
            read_image(str(path))
    with pytest.raises(ValueError, match=r"missing\.png can't be read"):
        read_image(str(tmp_path / "missing.png"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF"])
def test_whatever_the_bytes_are_there_is_an_image_or_an_error_that_names_the_file(tmp_path: Path, format: str) -> None:
    """torchvision's decoder of PNG ends the process on some of these."""
    chance = random.Random(0)
    metadata = {"exif": b"Exif\0\0" + bytes(20)} if format in ("JPEG", "PNG", "WEBP") else {}
    data = encoded(PHOTO.resize((24, 16)), format, **metadata)
    path = tmp_path / "image"
    outcomes: set[tuple[str, ...]] = set()
    for _ in range(150):
        damaged = bytearray(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)
        for _ in range(chance.choice((1, 3, 20)) if damaged else 0):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            pixels = read_image(str(path))
        except UnreadableImage as error:
            outcomes.add(("error", *re.split(r" \(.*\); ", str(error))))
        else:
            assert pixels.dtype == torch.uint8
            assert pixels.shape[0] == 3
            outcomes.add(("image",))
    remedy = "replace it, or find all bad files at once with data.scan=decode, or set data.on_error=skip"
    named = ("error", f"{path} can't be decoded", remedy)
    assert outcomes == ({named} if format == "PNG" else {named, ("image",)})


@pytest.mark.parametrize(("width", "height"), [(11_600, 11_600), (13_378, 13_378), (65_535, 65_535)])
def test_a_size_is_refused_before_anything_is_decoded(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "bomb"
    jpeg = bytearray(encoded(PHOTO, "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    gif = bytearray(encoded(PHOTO, "GIF"))
    gif[6:10] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    for data in (jpeg, gif):
        path.write_bytes(data)
        with pytest.raises(UnreadableImage, match=r"[\d,]+ pixels; make it smaller|exceeds limit of 178956970"):
            read_image(str(path))


def test_the_size_of_a_jpeg_is_read_as_pillow_reads_it() -> None:
    for options in ({}, {"progressive": True}, {"exif": Image.Exif()}, {"icc_profile": bytes(150_000)}):
        assert decode.jpeg_size(encoded(PHOTO, "JPEG", **options)) == PHOTO.size
    data = encoded(PHOTO, "JPEG")
    assert decode.jpeg_size(data[:2] + b"\xff\xff\xff" + data[2:]) == PHOTO.size, "filling bytes"
    with pytest.raises(ValueError, match="without an image"):
        decode.jpeg_size(b"\xff\xd8\xff\xd9" + bytes(20))


def test_a_named_error_crosses_from_a_worker_in_one_line() -> None:
    wrapped = (
        "Caught UnreadableImage in worker 0.\nOriginal Traceback ...\nvitlab.UnreadableImage: a.png can't be read\n"
    )
    assert str(UnreadableImage(wrapped)) == str(UnreadableImage("a.png can't be read")) == "a.png can't be read"


def test_what_the_machine_lacks_is_no_fault_of_an_image() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    for error in (caught.value, MemoryError(), OSError(errno.EMFILE, "Too many open files")):
        assert not decode.image_is_at_fault(error)
    for error in (
        RuntimeError("Corrupt JPEG data"),
        OSError("image file is truncated"),
        InvalidImage(errno.ENOENT, "gone"),
    ):
        assert decode.image_is_at_fault(error)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_header_is_enough_only_if_the_end_of_the_file_is_there(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "image"
    noise = torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(file, format)
    content = file.read_bytes()
    with decode.quiet():
        with monkeypatch.context() as patch:
            patch.setattr(decode, "decode", pytest.fail)  # not needed
            decode.check_header(str(file))
        file.write_bytes(content + b"bytes of another program")
        decode.check_header(str(file))
    for end in (0, 1, 20, len(content) * 3 // 4, len(content) - 3):  # a JPEG that lacks its end alone has all pixels
        file.write_bytes(content[:end])
        with decode.quiet(), pytest.raises((OSError, ValueError, RuntimeError, SyntaxError)):
            decode.check_header(str(file))
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="the file is empty"):
        decode.check_header(str(file))


@pytest.mark.parametrize("rest", [b"", b"\xff", b"\xff\xff", b"\xff\xc0", b"\xff\xe0\x00\x04ab\xff", b"\xff\xd9" * 9])
def test_a_jpeg_that_ends_before_its_size_has_none(rest: bytes) -> None:
    with pytest.raises(ValueError, match="without an image, or cut off before it"):
        decode.jpeg_size(b"\xff\xd8" + rest)


def test_a_side_without_pixels_is_refused() -> None:
    decode.check_size(1, 1)
    for width, height in ((0, 5), (5, 0), (0, 0)):
        with pytest.raises(ValueError, match=f"it has no pixels: {width} x {height}"):
            decode.check_size(width, height)
