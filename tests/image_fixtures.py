"""Real pictures in folders of classes, and what packing made of them."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from vitlab.data.packing.pack import pack as pack_source
from vitlab.data.packing.shard_writer import Settings
from vitlab.data.sets.image_folder import image_folder
from vitlab.data.source import Source

Packed = Callable[..., Path]
Members = list[tuple[str, bytes]]  # of a tar file
SETTINGS = Settings(24, 90, 16, True, 0)


def draw(root: Path) -> Path:
    """train/CLASS and val/CLASS: 90 handwritten digits as JPEG and PNG, and parts of two photographs, one turned."""
    digits = load_digits()
    for number in range(90):
        folder = root / ("train" if number < 70 else "val") / f"digit {digits.target[number] % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.kron((digits.images[number] * 15.9).astype("uint8"), np.ones((4, 3), "uint8"))  # 32 x 24
        Image.fromarray(pixels).save(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
    for number, pixels in enumerate(load_sample_images().images):
        folder = root / "train" / f"digit {number}"
        Image.fromarray(pixels[100:180, 100:220]).save(folder / "photo.jpg", quality=95)
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter to the right
        Image.fromarray(pixels[:60, :100]).save(folder / "turned.jpg", exif=exif)
    return root


def source(folder: Path) -> Source:
    """Those pictures as a data set."""
    return image_folder(data_dir=str(folder))


def pack(folder: Path, out: Path, **others: Any) -> Path:
    """Packs those pictures in this process, with settings that differ from `SETTINGS`."""
    settings = Settings(**{**vars(SETTINGS), **others})
    pack_source(source(folder), settings, out, name="pictures", processes=0)
    return out


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name there."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def tar(file: Path, members: Members) -> None:
    """A tar file as others write it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as opened:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
