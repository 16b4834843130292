"""Image operations on batches: each equals torchvision's on one image, and images differ in their draws."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from vitlab.data import augment_ops
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
@pytest.mark.parametrize("name", augment_ops.NAMES)
@pytest.mark.parametrize("shape", [(3, 20, 14), (1, 8, 8)])
def test_each_op_equals_torchvisions_on_a_single_image(name: str, wide: bool, shape: tuple[int, int, int]) -> None:
    levels = torch.arange(augment_ops.LEVELS)
    values = augment_ops.magnitude(name, levels, wide, shape[1:])
    if augment_ops.OPS[name][2]:
        values = torch.cat([values, -values])
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


@pytest.mark.parametrize("wide", [False, True])
def test_the_table_of_ops_is_torchvisions(wide: bool) -> None:
    theirs = v2.TrivialAugmentWide if wide else v2.RandAugment
    space = theirs._AUGMENTATION_SPACE
    assert set(space) == set(augment_ops.NAMES)
    for name, (magnitudes, signed) in space.items():
        assert augment_ops.OPS[name][2] == signed
        expected = magnitudes(augment_ops.LEVELS, 20, 14)
        if expected is not None:
            ours = augment_ops.magnitude(name, torch.arange(augment_ops.LEVELS), wide, (20, 14))
            expected = expected.trunc() if name.startswith("Translate") else expected
            assert torch.allclose(ours, expected.float())


def test_images_of_different_ops_stay_in_their_places() -> None:
    batch = images(len(augment_ops.NAMES))
    chosen = torch.arange(len(augment_ops.NAMES)).flip(0)
    values = torch.full((len(augment_ops.NAMES),), 4.0)
    values[chosen == augment_ops.NAMES.index("Solarize")] = 0.5
    together = augment_ops.apply_ops(batch, chosen, values)
    for row in range(len(batch)):
        alone = augment_ops.apply_ops(batch[row : row + 1], chosen[row : row + 1], values[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_randaugment_and_trivialaugment_draw_per_image() -> None:
    torch.manual_seed(0)
    assert distinct(augment_ops.rand_augment(same(200), 2, 9)) > 80
    assert distinct(augment_ops.trivial_augment(same(200))) > 80
    signs = augment_ops.rand_augment(same(300), 1, 30)
    assert distinct(signs) >= 20  # 9 ops of two signs, 5 without


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


def test_randaugment_applies_each_op_at_its_magnitude_with_both_signs() -> None:
    torch.manual_seed(0)
    expected = set()
    for index, name in enumerate(augment_ops.NAMES):
        value = augment_ops.magnitude(name, torch.tensor([30]), False, (20, 20))
        for sign in (1, -1) if augment_ops.OPS[name][2] else (1,):
            image = augment_ops.apply_ops(same(1), torch.tensor([index]), sign * value)
            expected.add(tuple(image.flatten().tolist()))
    drawn = augment_ops.rand_augment(same(400), 1, 30)
    assert {tuple(image) for image in drawn.flatten(1).tolist()} == expected
