"""One image file to pixels: every format and mode, and every kind of damage."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from torchvision.transforms import v2

from vitlab.data import reading
from vitlab.data.reading import read_image

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
        monkeypatch.setattr(reading, "decode_image", None)  # a torchvision of the future
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
