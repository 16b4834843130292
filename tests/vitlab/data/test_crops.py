"""Crops of batches: each equals torchvision's of one image, and the draws have torchvision's distribution."""

from typing import Any, Literal

import pytest
import torch
from timm.data.transforms import ResizeKeepRatio
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from distributions import differ
from vitlab.data import crops
from vitlab.data.sets.fake import fake


def images(count: int = 12, size: int = 20, channels: int = 3) -> Tensor:
    batch = fake(samples=count, test_samples=1, size=size, channels=channels).train.images
    assert batch is not None
    return batch


def test_crop_shifts_by_up_to_the_padding_with_black_around_it() -> None:
    torch.manual_seed(0)
    size, padding = 6, 2
    batch = (torch.arange(size * size, dtype=torch.uint8) + 1).view(1, 1, size, size).expand(500, 3, -1, -1)
    cropped = crops.crop_and_flip(batch.contiguous(), padding, flip=False)
    padded = torch.nn.functional.pad(batch[0], (padding,) * 4)
    windows = {
        tuple(padded[:, top : top + size, left : left + size].flatten().tolist())
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    }
    assert {tuple(image.flatten().tolist()) for image in cropped} == windows


def test_flip_mirrors_half_of_the_images() -> None:
    torch.manual_seed(0)
    batch = images(1).expand(1000, -1, -1, -1).contiguous()
    flipped = crops.crop_and_flip(batch, 0, flip=True)
    mirrored = (flipped == batch.flip(3)).flatten(1).all(1)
    assert 430 < int(mirrored.sum()) < 570
    assert torch.equal(flipped[~mirrored], batch[~mirrored])


@pytest.mark.parametrize("size", [(9, 7), (30, 41)])
@pytest.mark.parametrize(("interpolation", "antialias"), [("bicubic", True), ("bilinear", True), ("bilinear", False)])
def test_crops_are_resized_as_torchvision_resizes_one(
    size: tuple[int, int], interpolation: str, antialias: bool
) -> None:
    torch.manual_seed(0)
    batch = images(60, 32)[:, :, :, :26].contiguous()
    boxes = crops.inception_boxes(60, (32, 26), (0.05, 1.0))
    boxes[:, 0] = torch.tensor([0, 0, 32, 26])
    top, left, tall, wide = boxes
    is_bicubic = torch.full((60,), interpolation == "bicubic")
    rows = crops.resize_weights(top, tall, 32, size[0], is_bicubic, antialias)
    cols = crops.resize_weights(left, wide, 26, size[1], is_bicubic, antialias)
    ours, mode = crops.resample(batch, rows, cols), v2.InterpolationMode(interpolation)
    theirs = torch.stack(
        [
            tv.resized_crop(image, *box, list(size), mode, antialias=antialias)
            for image, box in zip(batch, boxes.T.int().tolist(), strict=True)
        ]
    )
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 2, "torch has weights of 16 bits, and rounds after each direction"
    assert (difference > 1).float().mean() < 0.001
    assert (difference > 0).float().mean() < 0.04


@pytest.mark.parametrize("size", [(32, 32), (20, 60), (90, 16)])
def test_boxes_have_torchvisions_distribution(size: tuple[int, int]) -> None:
    """The second and third size often have no box that fits in ten tries: the central one is taken."""
    torch.manual_seed(0)
    count, scale = 4000, (0.3, 1.0)
    crop, image = v2.RandomResizedCrop(8, scale), torch.empty(1).expand(1, *size)
    draws = [crop.make_params([image]) for _ in range(count)]
    theirs = torch.tensor([[draw[key] for key in ("top", "left", "height", "width")] for draw in draws]).T.float()
    ours = crops.inception_boxes(count, size, scale)
    assert ((ours[0] >= 0) & (ours[0] + ours[2] <= size[0]) & (ours[1] >= 0) & (ours[1] + ours[3] <= size[1])).all()

    def marginals(boxes: Tensor) -> list[Tensor]:
        return [*boxes, boxes[2] * boxes[3], boxes[3] / boxes[2], boxes[0] / (size[0] - boxes[2]).clamp(min=1)]

    assert not any(differ(one, other) for one, other in zip(marginals(ours), marginals(theirs), strict=True))
    other = crops.inception_boxes(count, size, (0.2, 1.0))
    assert differ(other[2] * other[3], theirs[2] * theirs[3]), "another range is seen"


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_each_image_has_its_crop_and_perhaps_its_interpolation(
    interpolation: Literal["bicubic", "bilinear", "random"],
) -> None:
    torch.manual_seed(0)
    batch = images(1, 32).expand(200, -1, -1, -1)
    cropped = crops.random_resized_crop(batch, (24, 24), (1.0, 1.0), interpolation)
    counts = []
    for kind in ("bicubic", "bilinear"):
        expected = tv.resize(batch[:1], [24, 24], v2.InterpolationMode(kind), antialias=True)
        counts.append(int(((cropped.int() - expected.int()).abs() <= 1).flatten(1).all(1).sum()))
    # a share of 1.0 fits for the ratio 1 alone: nearly all fall back to the complete image
    if interpolation == "random":
        assert min(counts) > 70
    else:
        assert min(counts) == 0
        assert max(counts) > 180
    varied = crops.random_resized_crop(batch[:50], (24, 24), (0.1, 0.5), interpolation)
    assert len({tuple(image) for image in varied.flatten(1).tolist()}) == 50


def test_no_box_is_empty() -> None:
    torch.manual_seed(0)
    boxes = crops.inception_boxes(200, (2, 2), (0.01, 0.1))
    assert bool((boxes[2:] >= 1).all())


@pytest.mark.parametrize("value", [0, 255])
def test_a_crop_of_one_color_has_that_color(value: int) -> None:
    batch = torch.full((8, 3, 20, 20), value, dtype=torch.uint8)
    assert bool((crops.random_resized_crop(batch, (12, 12), (0.1, 1.0), "bicubic") == value).all())


@pytest.mark.parametrize("shape", [(20, 30), (31, 20)])
def test_an_image_covers_a_size_that_is_not_square_as_timms_does(shape: tuple[int, int]) -> None:
    batch = images(1, 32)[:, :, : shape[0], : shape[1]]
    covered = crops.cover(batch, (12, 10), v2.InterpolationMode.BICUBIC)
    ratio = min(shape[0] / 12, shape[1] / 10)  # of ResizeKeepRatio(longest=0.0)
    assert covered.shape[-2:] == (round(shape[0] / ratio), round(shape[1] / ratio))
    resize: Any = ResizeKeepRatio
    theirs = resize((12, 10), longest=0.0, interpolation="bicubic")(tv.to_pil_image(batch[0]))
    assert theirs.size == covered.shape[:1:-1]


@pytest.mark.parametrize("shape", [(20, 20), (20, 29), (26, 20)])
def test_the_simple_crop_is_a_window_of_the_covering_image_with_reflection(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    batch = images(1, 30)[:, :, : shape[0], : shape[1]]
    covered = crops.cover(batch, (12, 12), v2.InterpolationMode.BICUBIC)
    assert min(covered.shape[-2:]) == 12
    assert torch.equal(covered, v2.Resize(12, v2.InterpolationMode.BICUBIC)(batch))
    many = covered.expand(900, -1, -1, -1).contiguous()
    ours = crops.crop_and_flip(many, 4, True, size=(12, 12), mode="reflect")
    padded = tv.pad(covered, [4], padding_mode="reflect")
    windows = set()
    for top in range(padded.shape[2] - 11):
        for left in range(padded.shape[3] - 11):
            window = padded[0, :, top : top + 12, left : left + 12]
            windows |= {tuple(window.flatten().tolist()), tuple(window.flip(2).flatten().tolist())}
    drawn = {tuple(image) for image in ours.flatten(1).tolist()}
    assert drawn <= windows
    assert len(drawn) > 0.8 * len(windows)
