"""Image operations on batches: each equals torchvision's on one image, and images differ in their draws."""

import math
import random
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import kstest
from timm.data.auto_augment import NAME_TO_OP
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from distributions import counts_differ
from vitlab.data import augment_ops
from vitlab.data.augment_ops import erase
from vitlab.data.auto_augment import ENHANCEMENTS, big_vision_magnitudes, magnitude_table, timm_magnitudes
from vitlab.data.sets.fake import fake

BILINEAR = v2.InterpolationMode.BILINEAR


def images(count: int = 12, size: int = 20, channels: int = 3) -> Tensor:
    batch = fake(samples=count, test_samples=1, size=size, channels=channels).train.images
    assert batch is not None
    return batch


def same(count: int, size: int = 20) -> Tensor:
    """One image, `count` times: whatever differs afterwards was drawn per image."""
    return images(1, size).expand(count, -1, -1, -1).contiguous()


def distinct(batch: Tensor) -> int:
    return len({tuple(image) for image in batch.flatten(1).tolist()})


def torchvision_op(name: str, image: Tensor, value: float) -> Tensor:
    """The op as torchvision.transforms.v2.RandAugment applies it, by public functions."""
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "interpolation": BILINEAR}
    shear = math.degrees(math.atan(value))
    applied: dict[str, Callable[[], Tensor]] = {
        "Identity": lambda: image,
        "ShearX": lambda: tv.affine(image, **{**still, "shear": [shear, 0.0]}, center=[0, 0]),
        "ShearY": lambda: tv.affine(image, **{**still, "shear": [0.0, shear]}, center=[0, 0]),
        "TranslateX": lambda: tv.affine(image, **{**still, "translate": [int(value), 0]}),
        "TranslateY": lambda: tv.affine(image, **{**still, "translate": [0, int(value)]}),
        "Rotate": lambda: tv.rotate(image, value, BILINEAR),
        "Brightness": lambda: tv.adjust_brightness(image, 1 + value),
        "Color": lambda: tv.adjust_saturation(image, 1 + value),
        "Contrast": lambda: tv.adjust_contrast(image, 1 + value),
        "Sharpness": lambda: tv.adjust_sharpness(image, 1 + value),
        "Posterize": lambda: tv.posterize(image, int(value)),
        "Solarize": lambda: tv.solarize(image, 255 * value),
        "AutoContrast": lambda: tv.autocontrast(image),
        "Equalize": lambda: tv.equalize(image),
    }
    return applied[name]()


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", v2.RandAugment._AUGMENTATION_SPACE)
@pytest.mark.parametrize("shape", [(3, 20, 14), (1, 8, 8)])
def test_each_op_equals_torchvisions_on_a_single_image(name: str, wide: bool, shape: tuple[int, int, int]) -> None:
    kind, row = v2.TrivialAugmentWide if wide else v2.RandAugment, augment_ops.NAMES.index(name)
    table, signed = magnitude_table(kind, 31, *shape[1:])
    values = torch.cat([table[row], -table[row]]) if signed[row] else table[row]
    batch = images(len(values), 20)[:, : shape[0], : shape[1], : shape[2]].contiguous()
    chosen = torch.full((len(values),), augment_ops.NAMES.index(name))
    ours = augment_ops.apply_ops(batch, chosen, values)
    theirs = torch.stack([torchvision_op(name, image, float(v)) for image, v in zip(batch, values, strict=True)])
    difference = (ours.int() - theirs.int()).abs()
    exact = name in ("Identity", "Posterize", "Solarize", "AutoContrast", "Equalize")
    # the enhancements round the degenerate image, as Pillow does; bilinear sums differ in their last bit
    assert difference.max() <= (0 if exact else 1)
    if name in augment_ops.GEOMETRIC:
        assert (difference > 0).float().mean() < 0.03


def timm_op(name: str, image: Tensor, value: float, kernel: str) -> Tensor:
    """The op as timm.data.auto_augment applies it, with Pillow."""
    shift = {"TranslateX": image.shape[2], "TranslateY": image.shape[1]}
    arguments: dict[str, tuple[float, ...]] = {
        **dict.fromkeys(("AutoContrast", "Equalize", "Invert"), ()),
        **dict.fromkeys(("Rotate", "ShearX", "ShearY"), (value,)),
        **dict.fromkeys(ENHANCEMENTS, (1 + value,)),
        **dict.fromkeys(("Posterize", "SolarizeAdd"), (int(value),)),
        **{key: (-value / side,) for key, side in shift.items()},
        "Solarize": (math.ceil(255 * value),),
    }
    settings = {"fillcolor": (10, 20, 30), "resample": getattr(Image.Resampling, kernel.upper())}
    op: Any = NAME_TO_OP[name + "Rel" if name in shift else name]
    changed: Tensor = tv.pil_to_tensor(op(tv.to_pil_image(image), *arguments[name], **settings))
    return changed


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", timm_magnitudes(torch.zeros(1), 1, 1))
def test_each_op_equals_timms_on_a_single_image(name: str, kernel: Literal["bilinear", "bicubic"]) -> None:
    levels = torch.linspace(0, 9.9, 40, dtype=torch.float64)  # Pillow 13 refuses level 10 of posterize: no bits
    batch = images(40, 20)[:, :, :, :14].contiguous()
    values = timm_magnitudes(levels, 20, 14)[name].float()
    sampling = augment_ops.Sampling(kernel, (10, 20, 30))
    ours = augment_ops.apply_ops(batch, torch.full((40,), augment_ops.NAMES.index(name)), values, sampling)
    theirs = [timm_op(name, image, float(value), kernel) for image, value in zip(batch, values, strict=True)]
    difference = (ours.int() - torch.stack(theirs).int()).abs()
    if kernel == "bicubic" and name in augment_ops.GEOMETRIC:  # torch has a = -0.75, Pillow -1
        assert difference.float().mean() < 6, "noise of all frequencies"
        return
    assert difference.max() <= 1
    if name not in ("Color", "Contrast", "AutoContrast"):  # whose gray or mean is rounded otherwise
        assert (difference > 0).float().mean() < 0.03


def test_a_random_kernel_is_bilinear_or_bicubic_per_image() -> None:
    torch.manual_seed(0)
    rotated = []
    kernels: list[augment_ops.Kernel] = ["bilinear", "bicubic", "random"]
    for kernel in kernels:
        chosen, values = torch.full((200,), augment_ops.NAMES.index("Rotate")), torch.full((200,), 20.0)
        sampling = augment_ops.Sampling(kernel, (0, 0, 0))
        rotated.append(augment_ops.apply_ops(same(200), chosen, values, sampling))
    counts = [int((kind == rotated[2]).flatten(1).all(1).sum()) for kind in rotated[:2]]
    assert sum(counts) == 200
    assert min(counts) > 70


@pytest.mark.parametrize("name", ["Gray", "Blur", "Solarize"])
def test_the_ops_of_3_augment_equal_pillows(name: str) -> None:
    """As deit/augment.py has them."""
    batch, radius = images(40, 24), torch.linspace(0.1, 2.0, 40)
    values = torch.full((40,), 0.5) if name == "Solarize" else radius
    ours = augment_ops.apply_ops(batch, torch.full((40,), augment_ops.NAMES.index(name)), values)
    change: dict[str, Callable[[Any, float], Any]] = {
        "Gray": lambda picture, _: tv.to_grayscale(picture, 3),
        "Blur": lambda picture, value: picture.filter(ImageFilter.GaussianBlur(value)),
        "Solarize": lambda picture, _: ImageOps.solarize(picture),
    }
    pictures = [
        change[name](tv.to_pil_image(image), value) for image, value in zip(batch, radius.tolist(), strict=True)
    ]
    theirs = [tv.pil_to_tensor(picture) for picture in pictures]
    difference = (ours.int() - torch.stack(theirs).int()).abs()
    assert difference.max() <= {"Gray": 1, "Blur": 2, "Solarize": 0}[name]
    assert (difference > 1).float().mean() < 0.04


def big_vision_op(name: str, image: np.ndarray, value: float) -> np.ndarray:
    """The op of big_vision/pp/archive/autoaugment.py that neither torchvision nor timm has so, in NumPy, [H, W, 3]."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float64)
    turn, (middle_y, middle_x) = math.radians(value), ((height - 1) / 2, (width - 1) / 2)
    sources = {
        "ShearX": (x + value * y, y),
        "ShearY": (x, y + value * x),
        "TranslateX": (x - value, y),
        "TranslateY": (x, y - value),
        "Rotate": (
            middle_x + math.cos(turn) * (x - middle_x) - math.sin(turn) * (y - middle_y),
            middle_y + math.sin(turn) * (x - middle_x) + math.cos(turn) * (y - middle_y),
        ),
    }
    if name == "SolarizeAdd":
        return np.where(image < 128, np.minimum(image.astype(int) + int(value), 255), image)
    from_x, from_y = (np.floor(part + 0.5).astype(int) for part in sources[name])
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    found = image[from_y.clip(0, height - 1), from_x.clip(0, width - 1)]
    return np.where(inside[:, :, None], found, 128)


@pytest.mark.parametrize("name", [*augment_ops.GEOMETRIC, "SolarizeAdd"])
def test_each_op_equals_big_visions(name: str) -> None:
    torch.manual_seed(0)
    batch = images(40, 120)[:, :, :, :101].contiguous()
    values = big_vision_magnitudes(torch.linspace(0, 15, 40, dtype=torch.float64))[name].round(decimals=4).float()
    values = values.round() if name.startswith("Translate") else values
    sampling = augment_ops.Sampling("nearest", (128, 128, 128), origin=0.5)
    ours = augment_ops.apply_ops(batch, torch.full((40,), augment_ops.NAMES.index(name)), values, sampling)
    pictures = zip(batch.permute(0, 2, 3, 1).numpy(), values.tolist(), strict=True)
    theirs = [big_vision_op(name, image, value) for image, value in pictures]
    difference = ours != torch.from_numpy(np.stack(theirs)).permute(0, 3, 1, 2)
    assert difference.float().mean() < 0.005, "pixels between two others may be rounded otherwise"


def test_cutout_is_a_gray_square_around_a_pixel_of_the_image() -> None:
    torch.manual_seed(0)
    chosen, half = torch.full((2000,), augment_ops.NAMES.index("Cutout")), torch.full((2000,), 4.0)
    cut = augment_ops.apply_ops(torch.zeros(2000, 3, 20, 30, dtype=torch.uint8), chosen, half)[:, 0]
    assert set(cut.flatten().tolist()) == {0, 128}
    for lines in (cut.any(2), cut.any(1)):
        first, size = lines.int().argmax(1), lines.shape[1]
        centers = torch.where(first > 0, first + 4, lines.sum(1) - 4)  # rows [center - 4, center + 4)
        assert sorted(set(centers.tolist())) == list(range(size))
        assert centers.bincount().min() > 2000 / size * 0.6


def test_images_of_different_ops_stay_in_their_places() -> None:
    batch = images(len(augment_ops.NAMES))
    chosen = torch.arange(len(augment_ops.NAMES)).flip(0)
    values = torch.full((len(augment_ops.NAMES),), 4.0)
    for name, value in (("Solarize", 0.5), ("Blur", 1.0), ("Cutout", 0.0)):  # Cutout draws its place
        values[chosen == augment_ops.NAMES.index(name)] = value
    together = augment_ops.apply_ops(batch, chosen, values)
    for row in range(len(batch)):
        alone = augment_ops.apply_ops(batch[row : row + 1], chosen[row : row + 1], values[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_affine_matrices_follow_torchvisions_conventions() -> None:
    batch = images(1, 21)[:, :, :, :15].contiguous()
    matrices = augment_ops.affine_matrices(
        angle=torch.tensor([20.0]).deg2rad(),
        shift_x=torch.tensor([2.0]),
        shift_y=torch.tensor([-3.0]),
        scale=torch.tensor([1.2]),
        shear_x=torch.tensor([8.0]).deg2rad(),
        shear_y=torch.tensor([5.0]).deg2rad(),
    )
    theirs = tv.affine(batch, 20.0, [2, -3], 1.2, [8.0, 5.0], interpolation=BILINEAR)
    assert (augment_ops.warp(batch, matrices).int() - theirs.int()).abs().max() <= 1


def test_random_affine_draws_per_image_and_does_nothing_at_zero() -> None:
    torch.manual_seed(0)
    assert distinct(augment_ops.random_affine(same(50), 10.0, 0.1, (0.9, 1.1), 5.0)) == 50
    assert torch.equal(augment_ops.random_affine(same(2), 0.0, 0.0, (1.0, 1.0), 0.0), same(2))


def test_random_affine_draws_from_the_ranges_given() -> None:
    torch.manual_seed(0)
    count, height, width = 3000, 20, 30
    dot = torch.zeros(count, 1, height, width, dtype=torch.uint8)
    dot[:, :, 10, 15] = 200
    moved = augment_ops.random_affine(dot, 0.0, 0.2, (1.0, 1.0), 0.0).flatten(1)
    assert (moved.amax(1) == 200).all(), "shifts are of complete pixels"
    rows, columns = moved.argmax(1) // width - 10, moved.argmax(1) % width - 15
    assert sorted(set(rows.tolist())) == list(range(-4, 5))
    assert sorted(set(columns.tolist())) == list(range(-6, 7))
    assert abs(float(rows.float().mean())) < 0.2
    square = torch.zeros(count, 1, 40, 40, dtype=torch.uint8)
    square[:, :, 15:25, 15:25] = 255
    areas = augment_ops.random_affine(square, 0.0, 0.0, (0.5, 1.5), 0.0).sum((1, 2, 3)) / 255 / 100
    scales = areas.sqrt()
    assert float(scales.min()) == pytest.approx(0.5, abs=0.03)
    assert float(scales.max()) == pytest.approx(1.5, abs=0.03)
    assert float(scales.mean()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(("degrees", "shear"), [(30.0, 0.0), (0.0, 20.0)])
def test_random_affine_turns_and_shears_both_ways_up_to_its_limit(degrees: float, shear: float) -> None:
    torch.manual_seed(0)
    image = images(1, 30)
    drawn = augment_ops.random_affine(image.expand(400, -1, -1, -1).contiguous(), degrees, 0.0, (1.0, 1.0), shear)
    for sign in (-1, 1):
        limit = tv.affine(image, sign * degrees, [0, 0], 1.0, [sign * shear, 0.0], interpolation=BILINEAR)
        assert (drawn.int() - limit.int()).abs().float().mean((1, 2, 3)).min() < 6
    angles = [
        tv.affine(image, degrees * each / 10, [0, 0], 1.0, [shear * each / 10, 0.0], interpolation=BILINEAR)
        for each in range(-20, 21)
    ]
    distances = torch.stack([(drawn.int() - a.int()).abs().float().mean((1, 2, 3)) for a in angles], dim=1)
    nearest = distances.argmin(1) - 20
    assert (int(nearest.min()), int(nearest.max())) == (-10, 10)


def test_erasing_takes_rectangles_of_the_papers_size() -> None:
    torch.manual_seed(0)
    batch = torch.ones(2000, 3, 30, 40)
    erased = erase(batch, 0.25)
    holes = (erased == 0).all(1)
    touched = holes.flatten(1).any(1)
    assert 430 < int(touched.sum()) < 570
    assert len({tuple(hole) for hole in holes[touched][:100].flatten(1).tolist()}) > 90
    for hole in holes[touched]:
        rows, cols = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        area = (rows[-1] - rows[0] + 1) * (cols[-1] - cols[0] + 1)
        assert int(hole.sum()) == int(area), "a hole is a full rectangle"
        assert 0.01 < area / 1200 < 0.36
    pixels = (erase(batch, 1.0, (1e-6, 1e-6)) == 0).all(1).flatten(1).sum(1)
    assert (pixels == 1).all(), "at least one pixel, and no more of so small an area"
    assert torch.equal(erase(batch, 0.0), batch)
    assert (erase(batch, 1.0) == 0).flatten(1).any(1).all()
    assert (batch == 1).all(), "the batch itself stays as it was"


@pytest.mark.parametrize(("mode", "theirs"), [("channel", "rand"), ("pixel", "pixel")])
def test_noise_is_erased_by_timm(mode: Literal["channel", "pixel"], theirs: str) -> None:
    batch, state = torch.ones(64, 3, 24, 12), random.getstate()
    torch.manual_seed(5)
    ours = erase(batch, 0.25, (0.02, 0.4), mode)
    assert random.getstate() == state
    torch.manual_seed(5)
    random.seed(int(torch.randint(2**32, ())))
    erasing = RandomErasing(0.25, 0.02, 0.4, mode=theirs, device="cpu")  # type: ignore[no-untyped-call]
    assert torch.equal(ours, erasing(batch.clone()))
    random.setstate(state)
    assert 4 < int((ours != 1).flatten(1).any(1).sum()) < 30


def erased_boxes(erased: Tensor) -> Tensor:
    """Top, height, left and width of each image's erased pixels, [n, 4], of images of ones."""
    holes = (erased != 1).any(1)
    holes = holes[holes.flatten(1).any(1)]
    rows, cols = holes.any(2).int(), holes.any(1).int()
    return torch.stack([rows.argmax(1), rows.sum(1), cols.argmax(1), cols.sum(1)], dim=1)


def test_of_a_square_the_boxes_have_timms_distribution_up_to_clipping() -> None:
    torch.manual_seed(0)
    noisy = erased_boxes(erase(torch.ones(16000, 3, 24, 24), 0.25, (0.02, 0.33), "pixel"))
    const = erased_boxes(erase(torch.ones(16000, 3, 24, 24), 0.25))
    larger = erased_boxes(erase(torch.ones(16000, 3, 24, 24), 0.25, (0.02, 0.4)))
    is_clipped = (const == 24).any(1)  # timm draws these again
    assert is_clipped.float().mean() < 0.01
    const = const[~is_clipped]
    assert not any(counts_differ(one.tolist(), other.tolist()) for one, other in zip(noisy.T, const.T, strict=True))
    assert counts_differ(noisy[:, 1].tolist(), larger[:, 1].tolist()), "another area is seen"


def test_erased_pixels_are_zeros_or_normal_noise_per_channel_or_pixel() -> None:
    batch = torch.full((400, 3, 20, 20), 9.0)
    for mode in ("const", "channel", "pixel"):
        torch.manual_seed(0)
        erased = erase(batch, 1.0, (0.1, 0.2), mode)
        assert (batch == 9).all(), "the batch itself stays as it was"
        values = [[channel[channel != 9] for channel in image] for image in erased]
        if mode == "const":
            assert all((channel == 0).all() for image in values for channel in image)
            continue
        assert all((channel == channel[0]).all() == (mode == "channel") for image in values for channel in image)
        firsts = [float(channel[0]) for image in values for channel in image]
        assert kstest(firsts, "norm").pvalue > 1e-4
        assert len(set(firsts)) == 1200
        inside = torch.cat([image[0] for image in values])
        assert 0.1 < len(inside) / (400 * 400) < 0.2


def test_erased_rectangles_are_anywhere_within_the_image() -> None:
    torch.manual_seed(0)
    holes = erase(torch.ones(4000, 1, 12, 9), 1.0)[:, 0] == 0
    for lines in (holes.any(2), holes.any(1)):  # rows, columns
        sides, size = lines.sum(1), lines.shape[1]
        first, last = lines.int().argmax(1), size - 1 - lines.flip(1).int().argmax(1)
        assert torch.equal(last - first + 1, sides)
        for side in range(2, 6):
            places = first[sides == side].bincount(minlength=size)
            expected = int((sides == side).sum()) / (size - side + 1)
            assert places[: size - side + 1].min() > 0.6 * expected, "each place is as likely"
            assert places[: size - side + 1].max() < 1.5 * expected
