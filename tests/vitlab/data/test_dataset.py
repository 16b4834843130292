"""Batches from memory and from files."""

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data.transforms import ResizeKeepRatio
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory
from torchvision.transforms import v2

from vitlab.data.augment import Augment
from vitlab.data.dataset import EvalBatch, FilesDataset, MemoryDataset, TrainBatch, center_crop
from vitlab.data.decode import read_image
from vitlab.data.sampler import BatchPlan, EpochBatches, stable_seed
from vitlab.data.sets.digits import digits
from vitlab.data.source import Split


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


def test_repeats_of_a_sample_are_augmented_each_in_its_way(photos: Split) -> None:
    data = FilesDataset(photos, image_size=(32, 32), augment=Augment(), seed=5, training=True)
    batch = data.__getitems__(BatchPlan(0, 0, [3, 3, 3, 7], 4, 0, [0, 1, 2, 0])).images
    assert len({tuple(image.flatten().tolist()) for image in batch}) == 4
    assert torch.equal(data.__getitems__(BatchPlan(0, 1, [7, 3], 2, 0, [0, 2])).images, batch[[3, 2]])


def test_loading_files_leaves_the_global_random_state_alone(photos: Split) -> None:
    before = torch.random.get_rng_state()
    data = FilesDataset(photos, image_size=(8, 8), augment=Augment(), seed=0, training=True)
    data.__getitems__(BatchPlan(0, 0, [0, 1], 2))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("fraction", "resized"), [(None, 64), (1.0, 56)])
def test_evaluation_takes_the_center_like_torchvision(photos: Split, fraction: float | None, resized: int) -> None:
    augment = Augment(crop_fraction=fraction)
    data = FilesDataset(photos, image_size=(56, 56), augment=augment, seed=0, training=False)
    batch = data.__getitems__(BatchPlan(0, 0, [0, 9], 2))
    assert isinstance(batch, EvalBatch)
    reference = v2.Compose([v2.Resize(resized, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(56)])
    assert photos.files is not None
    for image, path in zip(batch.images, (photos.files[0], photos.files[9]), strict=True):
        assert torch.equal(image, reference(read_image(path)))


@pytest.mark.parametrize("size", [(10, 90), (90, 10), (33, 33), (1, 1)])
@pytest.mark.parametrize("image_size", [(16, 16), (8, 24), (24, 8)])
def test_the_center_crop_has_the_size_asked_for(size: tuple[int, int], image_size: tuple[int, int]) -> None:
    assert center_crop(torch.zeros(3, *size, dtype=torch.uint8), image_size, 0.875).shape == (3, *image_size)


@pytest.mark.parametrize("size", [(101, 67), (56, 95), (248, 73), (157, 143), (83, 83)])
def test_a_rectangle_is_cropped_as_timm_crops_it(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    rounded = ResizeKeepRatio.get_params(image, (96, 128), 0.0)  # type: ignore[no-untyped-call]
    resized = v2.functional.resize(image, rounded, v2.InterpolationMode.BICUBIC, antialias=True)
    expected = v2.functional.center_crop(resized, [84, 112])
    assert torch.equal(center_crop(image, (84, 112), 0.875), expected)


def test_of_a_side_that_is_far_too_long_the_middle_is_seen() -> None:
    line = (torch.arange(100_001) % 7).mul(30).to(torch.uint8).expand(3, 1, -1)
    for image in (line, line.transpose(1, 2)):
        middle = v2.functional.center_crop(image, [min(side, 201) for side in image.shape[-2:]])
        assert torch.equal(center_crop(image, (8, 8), 0.875), center_crop(middle, (8, 8), 0.875))


@pytest.mark.parametrize(
    ("size", "image_size", "kept"),
    [
        ((1, 1000), (8, 8), [1, 64]),
        ((1000, 2), (8, 8), [128, 2]),
        ((3, 1000), (8, 24), [3, 576]),
        ((3, 1000), (24, 9), [3, 576]),
        ((2, 128), (8, 8), [2, 128]),
    ],
)
def test_a_side_that_is_far_too_long_is_cut_before_it_is_resized(
    size: tuple[int, int], image_size: tuple[int, int], kept: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    resize, resized = v2.functional.resize, []

    def note(image: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        resized.append(list(image.shape[-2:]))
        result: torch.Tensor = resize(image, *arguments, **options)
        return result

    monkeypatch.setattr(v2.functional, "resize", note)
    center_crop(torch.zeros(3, *size, dtype=torch.uint8), image_size, 0.875)
    assert resized == [kept], "else a line of 100,000 pixels would take 20 GB"


def test_large_crops_come_from_a_smaller_decoding_only_where_that_is_asked_for(photos: Split) -> None:
    assert photos.files is not None
    augment, boxes = Augment(crop_scale=(0.9, 1.0)), BatchPlan(0, 0, [0, 4, 9], 3)
    pictures = {}
    for scaled in (False, True):
        data = FilesDataset(photos, image_size=(24, 24), augment=augment, seed=3, training=True, scaled_decoding=scaled)
        pictures[scaled] = data.__getitems__(boxes).images
    assert not torch.equal(pictures[False], pictures[True])
    assert (pictures[False].float() - pictures[True].float()).abs().mean() < 4
    plain = FilesDataset(photos, image_size=(24, 24), augment=augment, seed=3, training=True)
    assert torch.equal(plain.__getitems__(boxes).images, pictures[False]), "not by default"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(3, 0, 4))
        crop = v2.RandomResizedCrop((24, 24), (0.9, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
        assert torch.equal(pictures[False][1], crop(read_image(photos.files[4]))), (
            "torchvision's own, of the complete image"
        )


@pytest.mark.parametrize(
    ("knobs", "reference"),
    [
        (
            {"crop": "simple", "flip": True},  # deit/augment.py
            [v2.Resize(40, v2.InterpolationMode.BICUBIC), v2.RandomCrop(40, padding=4, padding_mode="reflect")],
        ),
        (
            {"crop": "simple", "crop_padding": 7, "crop_interpolation": "bilinear"},
            [v2.Resize(40), v2.RandomCrop(40, padding=7, padding_mode="reflect")],
        ),
        (
            {"crop": "inception", "crop_interpolation": "bilinear", "crop_antialias": False},
            [v2.RandomResizedCrop(40, antialias=False)],
        ),
        ({"color_jitter": 0.4, "flip": True}, [v2.RandomResizedCrop(40, interpolation=v2.InterpolationMode.BICUBIC)]),
        ({"crop": "none"}, [v2.Resize(45, v2.InterpolationMode.BICUBIC), v2.CenterCrop(40)]),
    ],
)
def test_files_are_cropped_as_torchvision_does(photos: Split, knobs: dict[str, Any], reference: list[Any]) -> None:
    if knobs.get("flip"):
        reference = [*reference, v2.RandomHorizontalFlip()]
    if knobs.get("color_jitter"):
        reference = [*reference, v2.ColorJitter(0.4, 0.4, 0.4)]
    data = FilesDataset(photos, image_size=(40, 40), augment=Augment(**knobs), seed=3, training=True)
    assert photos.files is not None
    pictures = data.__getitems__(BatchPlan(1, 0, [2, 7], 2)).images
    for picture, index in zip(pictures, (2, 7), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(3, 1, index))
            assert torch.equal(picture, v2.Compose(reference)(read_image(photos.files[index])))


def test_of_files_too_the_interpolation_may_be_random(photos: Split) -> None:
    def pictures(kind: Any, epoch: int) -> torch.Tensor:
        augment = Augment(crop_interpolation=kind, crop_scale=(1.0, 1.0))
        data = FilesDataset(photos, image_size=(40, 40), augment=augment, seed=3, training=True)
        return data.__getitems__(BatchPlan(epoch, 0, [0], 1)).images

    bilinear, bicubic = pictures("bilinear", 0), pictures("bicubic", 0)
    drawn = [pictures("random", epoch) for epoch in range(40)]
    counts = [sum(torch.equal(picture, kind) for picture in drawn) for kind in (bilinear, bicubic)]
    assert sum(counts) > 34, "of a few, the complete image fits as a box, which is drawn after the interpolation"
    assert min(counts) > 8


def test_images_are_resized_by_the_interpolation_asked_for(photos: Split) -> None:
    pictures = {}
    for kind in ("bicubic", "bilinear"):
        data = FilesDataset(photos, image_size=(24, 24), augment=Augment(), seed=0, training=False, interpolation=kind)
        pictures[kind] = data.__getitems__(BatchPlan(0, 0, [0], 1)).images
    assert not torch.equal(pictures["bicubic"], pictures["bilinear"])


def test_crops_of_files_are_augmented_with_gray_around_them(photos: Split) -> None:
    augment = Augment(auto_augment="timm_randaugment", randaugment_ops=3)
    data = FilesDataset(photos, image_size=(24, 24), augment=augment, seed=5, training=True)
    loaded = data.__getitems__(BatchPlan(2, 0, list(range(10)), 10)).images
    assert photos.files is not None
    for index, image in enumerate(loaded):
        torch.manual_seed(stable_seed(5, 2, index))
        transform = augment.auto("bicubic", (0.5, 0.5, 0.5)).image_transform()
        assert torch.equal(image, transform(data._crop(photos.files[index])))
