"""Batches from memory and from files."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory
from torchvision.transforms import v2

from vitlab.data import dataset
from vitlab.data.augment import Augment
from vitlab.data.dataset import (
    EvalBatch,
    FilesDataset,
    MemoryDataset,
    TrainBatch,
    centre_crop,
    read_image,
)
from vitlab.data.sampler import BatchPlan, EpochBatches
from vitlab.data.sources import Split, digits

PHOTO = Image.fromarray(load_sample_image("china.jpg")).resize((160, 107))


def pillow_pixels(image: Image.Image) -> torch.Tensor:
    pixels: torch.Tensor = v2.functional.pil_to_tensor(image.convert("RGB"))
    return pixels


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Ten crops of two photographs as JPEG files in two classes."""
    folder = tmp_path_factory.mktemp("photos")
    files, labels = [], []
    for label, name in enumerate(("china.jpg", "flower.jpg")):
        photo = Image.fromarray(load_sample_image(name))
        for number in range(5):
            path = folder / f"{label}{number}.jpg"
            photo.crop((number * 80, 0, number * 80 + 200 + 10 * number, 150)).save(path)
            files.append(str(path))
            labels.append(label)
    return Split(None, torch.tensor(labels), files)


def training_batches(photos: Split, *, workers: int, batch_size: int = 4, epoch: int = 0) -> list[TrainBatch]:
    augment = Augment(flip=True, auto_augment="randaugment")
    data = FilesDataset(photos, image_size=(32, 48), augment=augment, seed=5, training=True)
    sampler = EpochBatches(samples=len(photos), batch_size=batch_size, seed=5, position=lambda: (epoch, 0))
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=lambda batch: batch, num_workers=workers)  # type: ignore[arg-type]
    return list(loader)


def test_memory_gives_the_rows_of_the_plan_untouched() -> None:
    train = digits().train
    assert train.images is not None
    batch = MemoryDataset(train, training=True).__getitems__(BatchPlan(2, 3, [7, 0, 7], 6, 1))
    assert isinstance(batch, TrainBatch)
    assert torch.equal(batch.images, train.images[[7, 0, 7]])
    assert batch.targets.tolist() == train.labels[[7, 0, 7]].tolist()
    assert (batch.count, batch.epoch, batch.step, batch.micro) == (6, 2, 3, 1)
    assert isinstance(MemoryDataset(train, training=False).__getitems__(BatchPlan(0, 0, [1], 1)), EvalBatch)


def test_a_batch_survives_transfer_and_pinning() -> None:
    batch = TrainBatch(torch.zeros(2, 1, 8, 8), torch.zeros(2), 4, 1, 2, 3)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, TrainBatch)
    assert moved.images.device.type == "meta"
    assert moved[2:] == (4, 1, 2, 3)
    if torch.cuda.is_available():
        pinned = pin_memory(batch)  # type: ignore[no-untyped-call]
        assert isinstance(pinned, TrainBatch)
        assert pinned.images.is_pinned()
        assert pinned[2:] == (4, 1, 2, 3)


def test_files_come_the_same_from_any_number_of_workers(photos: Split) -> None:
    here, there = training_batches(photos, workers=0), training_batches(photos, workers=2)
    assert len(here) == len(there) == 3
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert one[2:] == other[2:]


def test_a_sample_depends_on_epoch_and_index_but_not_on_its_batch(photos: Split) -> None:
    def by_checksum(batches: list[TrainBatch]) -> set[tuple[int, ...]]:
        return {tuple(image.flatten().tolist()) for batch in batches for image in batch.images}

    in_fours = by_checksum(training_batches(photos, workers=0))
    in_ones = by_checksum(training_batches(photos, workers=0, batch_size=1))
    assert in_fours == in_ones
    assert not in_fours & by_checksum(training_batches(photos, workers=0, epoch=1))


def test_loading_files_leaves_the_global_random_state_alone(photos: Split) -> None:
    before = torch.random.get_rng_state()
    data = FilesDataset(photos, image_size=(8, 8), augment=Augment(), seed=0, training=True)
    data.__getitems__(BatchPlan(0, 0, [0, 1], 2))
    assert torch.equal(before, torch.random.get_rng_state())


def test_evaluation_takes_the_centre_like_torchvision(photos: Split) -> None:
    data = FilesDataset(photos, image_size=(56, 56), augment=Augment(), seed=0, training=False)
    batch = data.__getitems__(BatchPlan(0, 0, [0, 9], 2))
    assert isinstance(batch, EvalBatch)
    reference = v2.Compose([v2.Resize(64, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(56)])
    assert photos.files is not None
    for image, path in zip(batch.images, (photos.files[0], photos.files[9]), strict=True):
        assert torch.equal(image, reference(read_image(path)))


@pytest.mark.parametrize("size", [(10, 90), (90, 10), (33, 33), (1, 1)])
@pytest.mark.parametrize("image_size", [(16, 16), (8, 24), (24, 8)])
def test_the_centre_crop_has_the_size_asked_for(size: tuple[int, int], image_size: tuple[int, int]) -> None:
    assert centre_crop(torch.zeros(3, *size, dtype=torch.uint8), image_size, 0.875).shape == (3, *image_size)


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
        monkeypatch.setattr(dataset, "decode_image", None)  # a torchvision of the future
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
    with pytest.raises(ValueError, match=r"missing\.png can't be decoded"):
        read_image(str(tmp_path / "missing.png"))
