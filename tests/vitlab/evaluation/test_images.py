"""Images of Python become the pixels that the training loader reads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitlab.data.decode import read_image
from vitlab.evaluation.images import flat_images, pixels


def test_a_folder_is_its_images_by_name_and_a_batch_remains_one(tmp_path: Path) -> None:
    for name in ("b/2.png", "a.jpg", "b/1.PNG", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    names = [str(Path(path).relative_to(tmp_path)) for path in flat_images(tmp_path)]
    assert names == ["a.jpg", "b/1.PNG", "b/2.png"]
    batch = torch.zeros(2, 3, 4, 4)
    assert [*flat_images([batch, [str(tmp_path / "a.jpg")]])] == [batch, str(tmp_path / "a.jpg")]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16"])
def test_an_image_of_pillow_has_the_pixels_of_its_file(mode: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(values, "RGBA").convert("RGB" if mode == "CMYK" else "RGBA").convert(mode)
    image.save(file := tmp_path / f"image.{'tif' if mode in ('CMYK', 'YCbCr') else 'png'}")
    with Image.open(file) as opened:
        assert torch.equal(pixels(opened, 3), read_image(str(file)))
    assert torch.equal(pixels(file, 3), read_image(str(file)))


def test_a_rotated_photo_of_pillow_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((8, 16), 90).convert("RGB").save(file := tmp_path / "photo.png", exif=exif)
    with Image.open(file) as opened:
        assert pixels(opened, 3).shape == (3, 8, 16)
        assert torch.equal(pixels(opened, 3), read_image(str(file)))


def test_transparent_arrays_are_over_white() -> None:
    array = np.zeros((4, 4, 4), dtype=np.uint8)
    array[..., 3] = np.arange(16).reshape(4, 4) * 17
    assert torch.equal(pixels(array, 3), pixels(Image.fromarray(array, "RGBA"), 3))
    assert pixels(np.stack([array] * 2), 3).shape == (2, 3, 4, 4)
