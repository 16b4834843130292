"""Random operations: the draws of each kind have the distribution of torchvision's, timm's or big_vision's."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from distributions import counts_differ, differ
from vitlab.data import augment_ops, auto_augment
from vitlab.data.augment_ops import NAMES, Sampling
from vitlab.data.auto_augment import AutoAugmentation
from vitlab.data.sets.fake import fake

COUNT = 3000


def same(count: int, size: int = 20) -> Tensor:
    """One image, `count` times: whatever differs afterwards was drawn per image."""
    batch = fake(samples=1, test_samples=1, size=size).train.images
    assert batch is not None
    return batch.expand(count, -1, -1, -1).contiguous()


def distinct(batch: Tensor) -> int:
    return len({tuple(image) for image in batch.flatten(1).tolist()})


Draws = list[list[tuple[str, float]]]  # of each image, the operations with their magnitudes, without Identity


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    """What the batched form draws for each of COUNT images; operations change nothing."""
    drawn: Draws = [[] for _ in range(COUNT)]

    def note(images: Tensor, chosen: Tensor, magnitudes: Tensor, sampling: Any = None) -> Tensor:
        for row, (op, value) in enumerate(zip(chosen.tolist(), magnitudes.tolist(), strict=True)):
            if NAMES[op] != "Identity":
                drawn[row].append((NAMES[op], value))
        return images

    monkeypatch.setattr(auto_augment, "apply_ops", note)
    torch.manual_seed(0)
    return drawn


def names_of(draws: Draws) -> list[tuple[str, ...]]:
    return [tuple(name for name, _ in ops) for ops in draws]


def values_of(draws: Draws, name: str) -> list[float]:
    return [value for ops in draws for op, value in ops if op == name]


def augmentation(kind: str, level: int = 9, std: float = 0.5) -> AutoAugmentation:
    return AutoAugmentation(kind, 2, level, std, Sampling("random", (1, 2, 3)))


def torchvision_draws(transform: Any, monkeypatch: pytest.MonkeyPatch) -> Draws:
    """What torchvision's class draws for each of COUNT images, one by one; operations change nothing."""
    drawn: Draws = []

    def note(image: Tensor, name: str, value: float, **_: Any) -> Tensor:
        drawn[-1].append((name, value))
        return image

    monkeypatch.setattr(transform, "_apply_image_or_video_transform", note)
    for _ in range(COUNT):
        drawn.append([])
        transform(torch.zeros(3, 24, 30, dtype=torch.uint8))
    return drawn


def rounded(drawn: Draws) -> list[tuple[str, float]]:
    cut = {"TranslateX", "TranslateY", "Posterize"}  # torchvision cuts these when it applies them
    return [(name, round(int(value) if name in cut else value, 3)) for ops in drawn for name, value in ops]


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
def test_autoaugment_draws_as_torchvisions(policy: str, draws: Draws, monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation(f"autoaugment_{policy}").batch(torch.zeros(COUNT, 3, 24, 30, dtype=torch.uint8))
    theirs = torchvision_draws(v2.AutoAugment(v2.AutoAugmentPolicy(policy)), monkeypatch)
    assert not counts_differ(names_of(draws), names_of(theirs))
    assert set(rounded(draws)) == set(rounded(theirs))
    assert not counts_differ(rounded(draws), rounded(theirs))


def test_images_of_a_batch_have_each_its_augmix() -> None:
    """torchvision's class, image by image."""
    torch.manual_seed(0)
    batch, transform = same(6), v2.AugMix()
    mixed = augmentation("augmix").batch(batch)
    assert distinct(mixed) == 6
    torch.manual_seed(0)
    assert torch.equal(mixed, torch.stack([transform(image) for image in batch]))


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear", "random"])
def test_a_single_image_is_augmented_by_timm(kernel: augment_ops.Kernel) -> None:
    settings = {"img_mean": (1, 2, 3), "magnitude_std": 0.5}
    if kernel != "random":
        settings["interpolation"] = Image.Resampling[kernel.upper()]
    theirs: Any = rand_augment_transform("rand-m8-n3-inc1", settings)
    ours = AutoAugmentation("timm_randaugment", 3, 8, 0.5, Sampling(kernel, (1, 2, 3))).image_transform()
    for seed, image in enumerate(same(20)):
        torch.manual_seed(seed)
        changed = ours(image)
        torch.manual_seed(seed)
        draw = int(torch.randint(2**32, ()))
        random.seed(draw)
        np.random.seed(draw)  # noqa: NPY002 what timm draws from
        assert torch.equal(changed, tv.pil_to_tensor(theirs(tv.to_pil_image(image))))


def test_level_10_of_timms_posterize_makes_black() -> None:
    """Pillow 13 refuses to keep no bits."""
    torch.manual_seed(0)
    transform: Any = AutoAugmentation("timm_randaugment", 1, 10, 0.0, Sampling("bilinear", (9, 9, 9))).image_transform()
    transform.transform.ops = [op for op in transform.transform.ops if op.name == "PosterizeIncreasing"]
    drawn = [transform(image) for image in same(40)]
    black = sum(not image.any() for image in drawn)
    assert 5 < black < 35
    assert black + sum(torch.equal(image, same(1)[0]) for image in drawn) == 40


@pytest.mark.parametrize(("level", "std"), [(9, 0.5), (5, 0.0), (3, 2.0)])
def test_timm_randaugment_draws_as_timms(level: int, std: float, draws: Draws) -> None:
    height, width = 24, 30
    augmentation("timm_randaugment", level, std).batch(torch.zeros(COUNT, 3, height, width, dtype=torch.uint8))
    transform = rand_augment_transform(f"rand-m{level}-n2-mstd{std}-inc1", {"img_mean": (1, 2, 3)})
    theirs: Draws = []

    def noted(name: str) -> Callable[..., Any]:
        def note(image: Any, *arguments: float, **settings: Any) -> Any:
            assert settings["fillcolor"] == (1, 2, 3)
            theirs[-1].append((name.removesuffix("Increasing").removesuffix("Rel"), arguments[0] if arguments else 0.0))
            return image

        return note

    for op in transform.ops:
        op.aug_fn = noted(op.name)
    np.random.seed(0)  # noqa: NPY002 what timm draws from
    for _ in range(COUNT):
        theirs.append([])
        transform(None)
    assert not counts_differ(names_of(draws), names_of(theirs))
    assert not counts_differ(map(len, draws), map(len, theirs))
    assert not counts_differ(*([name for ops in drawn for name, _ in ops] for drawn in (draws, theirs)))
    timms: dict[str, Callable[[float], float]] = {  # from our units to timm's
        **dict.fromkeys(auto_augment.ENHANCEMENTS, lambda value: 1 + value),
        "Solarize": lambda value: np.ceil(255 * value),
        "TranslateX": lambda value: -value / width,
        "TranslateY": lambda value: -value / height,
    }
    for name in {name for ops in theirs for name, _ in ops} - {"AutoContrast", "Equalize", "Invert"}:
        ours = [round(timms.get(name, float)(value), 4) for value in values_of(draws, name)]
        assert not differ(ours, np.round(values_of(theirs, name), 4)), name
        if std == 0.5 and name in ("Rotate", "ShearX", "TranslateY"):
            other = np.abs(values_of(theirs, name)) * 1.1
            assert differ(np.abs(ours), other), "another scale is seen"


@pytest.mark.parametrize("level", [10, 15])
def test_big_vision_randaugment_draws_each_of_its_ops_alike(level: int, draws: Draws) -> None:
    augmentation("big_vision_randaugment", level).batch(torch.zeros(COUNT, 3, 24, 30, dtype=torch.uint8))
    assert {len(ops) for ops in draws} == {2}, "the probability that big_vision draws is not used there"
    counts = Counter(name for ops in draws for name, _ in ops)
    assert len(counts) == 16
    assert min(counts.values()) > 300, "375 on average, and the standard deviation is 19"
    part = level / 10
    expected = {
        "Rotate": 30 * part,
        "ShearX": 0.3 * part,
        "ShearY": 0.3 * part,
        "TranslateX": 100 * part,
        "TranslateY": 100 * part,
        "Posterize": int(4 * part),
        "SolarizeAdd": int(110 * part),
        "Cutout": int(40 * part),
        "Color": 1.8 * part - 0.9,
    }
    for name, value in expected.items():
        signed = name in augment_ops.GEOMETRIC
        assert {round(each, 4) for each in values_of(draws, name)} == {
            round(v, 4) for v in ((value, -value) if signed else (value,))
        }
    for value, threshold in ((2, 51), (5, 128), (9, 230)):  # int(256 x level / 10), of pixels from 0 to 255
        magnitudes = auto_augment.big_vision_magnitudes(torch.tensor([float(value)], dtype=torch.float64))
        assert 255 * magnitudes["Solarize"].item() == pytest.approx(threshold - 0.5, abs=1e-9)
    bright = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    solarize = torch.tensor([NAMES.index("Solarize")]), torch.tensor(values_of(draws, "Solarize")[:1])
    assert torch.equal(augment_ops.apply_ops(bright, *solarize), bright), "the threshold is 256 or more"


def test_3_augment_draws_one_of_three_and_a_radius(draws: Draws) -> None:
    augmentation("three_augment").batch(torch.zeros(COUNT, 3, 4, 4, dtype=torch.uint8))
    counts = Counter(name for ops in draws for name, _ in ops)
    assert set(counts) == {"Gray", "Solarize", "Blur"}
    assert sum(counts.values()) == COUNT
    assert min(counts.values()) > COUNT / 3 - 104, "four standard deviations"
    assert set(values_of(draws, "Solarize")) == {0.5}
    assert not differ(values_of(draws, "Blur"), np.random.default_rng(0).uniform(0.1, 2.0, COUNT))


@pytest.mark.parametrize("strength", [0.3, 1.4])
def test_color_jitter_draws_as_torchvisions(strength: float, draws: Draws) -> None:
    auto_augment.color_jitter(torch.zeros(COUNT, 3, 4, 4, dtype=torch.uint8), strength)
    jitter = v2.ColorJitter(strength, strength, strength)
    params = [jitter.make_params([]) for _ in range(COUNT)]
    names = ("Brightness", "Contrast", "Color")
    orders = [tuple(names[i] for i in each["fn_idx"].tolist() if i < 3) for each in params]
    assert not counts_differ(names_of(draws), orders)
    for name, key in zip(names, ("brightness", "contrast", "saturation"), strict=True):
        factors = [each[f"{key}_factor"] - 1 for each in params]
        assert not differ(values_of(draws, name), factors)
        assert differ(values_of(draws, name), np.multiply(factors, 1.2)), "another strength is seen"


def test_color_jitter_equals_torchvisions_under_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    expected, apply_ops = same(6), augment_ops.apply_ops
    change = {"Brightness": tv.adjust_brightness, "Contrast": tv.adjust_contrast, "Color": tv.adjust_saturation}

    def note(images: Tensor, chosen: Tensor, magnitudes: Tensor) -> Tensor:
        for row, (op, value) in enumerate(zip(chosen.tolist(), magnitudes.tolist(), strict=True)):
            expected[row] = change[NAMES[op]](expected[row], 1 + value)
        return apply_ops(images, chosen, magnitudes)

    monkeypatch.setattr(auto_augment, "apply_ops", note)
    assert (auto_augment.color_jitter(same(6), 0.4).int() - expected.int()).abs().max() <= 4, "1 after each of three"


@pytest.mark.parametrize(
    "kind",
    [
        *("randaugment", "trivialaugment", "timm_randaugment", "big_vision_randaugment", "autoaugment_imagenet"),
        *("autoaugment_cifar10", "autoaugment_svhn", "augmix", "three_augment"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_kind_takes_batches_and_single_images(kind: str, channels: int) -> None:
    torch.manual_seed(0)
    batch = same(30)[:, :channels]
    auto = AutoAugmentation(kind, 2, 9, 0.0, Sampling("bicubic", (9,) * channels))
    changed, one = auto.batch(batch), torch.stack([auto.image_transform()(image) for image in batch])
    assert distinct(changed) > 5
    assert distinct(one) > 5
    assert changed.shape == one.shape == batch.shape
    assert changed.dtype == one.dtype == torch.uint8
    assert torch.equal(batch, same(30)[:, :channels]), "the batch itself stays as it was"


def test_randaugment_and_trivialaugment_draw_per_image() -> None:
    torch.manual_seed(0)
    assert distinct(auto_augment.rand_augment(same(200), 2, 9)) > 80
    assert distinct(auto_augment.trivial_augment(same(200))) > 80
    signs = auto_augment.rand_augment(same(300), 1, 30)
    assert distinct(signs) >= 20  # 9 ops of two signs, 5 without


def test_randaugment_applies_each_op_at_its_magnitude_with_both_signs() -> None:
    torch.manual_seed(0)
    expected = set()
    table, signed = auto_augment.magnitude_table(v2.RandAugment, 31, 20, 20)
    for index in range(14):
        value = table[index, 30:]
        for sign in (1, -1) if signed[index] else (1,):
            image = augment_ops.apply_ops(same(1), torch.tensor([index]), sign * value)
            expected.add(tuple(image.flatten().tolist()))
    drawn = auto_augment.rand_augment(same(400), 1, 30)
    assert {tuple(image) for image in drawn.flatten(1).tolist()} == expected
