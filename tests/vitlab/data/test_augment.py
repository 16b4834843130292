"""The knobs of augmentation, and the way from uint8 to normalized float."""

from contextlib import nullcontext
from typing import Any, get_args

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup
from torch import Tensor
from torchvision.transforms import v2

from distributions import differ
from vitlab.data.augment import Augment, AutoAugment, Prepare, per_channel
from vitlab.data.sets.fake import fake

KNOBS: list[dict[str, Any]] = [
    {"crop_padding": 3},
    {"flip": True},
    {"crop": "inception", "flip": True},
    {"crop": "inception", "crop_interpolation": "random"},
    {"crop": "simple"},
    {"degrees": 15.0},
    {"translate": 0.2},
    {"scale": (0.8, 1.2)},
    {"shear": 10.0},
    {"auto_augment": "randaugment"},
    {"auto_augment": "trivialaugment"},
    {"erasing": 1.0},
    {"erasing": 1.0, "erasing_mode": "pixel"},
]
PREPARE = Prepare(image_size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def run(augment: Augment, images: Tensor, targets: Tensor | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    targets = torch.arange(len(images)) % 10 if targets is None else targets
    outputs: tuple[Tensor, Tensor] = augment(images, targets, prepare=PREPARE, num_classes=10)
    return outputs


def same(count: int) -> Tensor:
    images = fake(samples=1, test_samples=1, size=16).train.images
    assert images is not None
    return images.expand(count, -1, -1, -1).contiguous()


@pytest.mark.parametrize("knobs", KNOBS)
def test_images_of_a_batch_are_varied_each_in_its_own_way(knobs: dict[str, Any]) -> None:
    images = same(64)
    before = images.clone()
    varied, targets = run(Augment(**knobs), images)
    assert varied.shape == (64, 3, 16, 16)
    assert varied.dtype == torch.float32
    assert len({tuple(image) for image in varied.flatten(1).tolist()}) >= (2 if list(knobs) == ["flip"] else 10)
    assert torch.equal(images, before), "the data set itself is not touched"
    assert targets.dtype == torch.int64


@pytest.mark.parametrize(
    "knobs", [*KNOBS, {"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "mix_mode": "pair"}]
)
def test_augmentation_repeats_under_a_seed(knobs: dict[str, Any]) -> None:
    augment = Augment(**knobs)
    images = fake(samples=32, test_samples=1, size=16).train.images
    assert images is not None
    one, again, other = (run(augment, images, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one[0], again[0])
    assert torch.equal(one[1], again[1])
    assert not torch.equal(one[0], other[0])


def test_uint8_stays_uint8_until_the_images_are_prepared() -> None:
    augment = Augment(crop_padding=2, flip=True, degrees=5.0, auto_augment="randaugment")
    varied = augment.vary(same(8), PREPARE)
    assert varied.dtype == torch.uint8
    assert varied.shape == (8, 3, 16, 16)


def test_what_the_workers_did_is_not_done_again() -> None:
    images = same(8)
    augment = Augment(crop_padding=2, flip=True, auto_augment="trivialaugment")
    assert torch.equal(augment.vary(images, PREPARE, cropped=True), images)
    assert not torch.equal(augment.vary(images, PREPARE), images)


def test_nothing_is_on_by_default_and_randaugment_is_as_strong_as_torchvisions() -> None:
    augment, theirs = Augment(), v2.RandAugment()
    assert (augment.randaugment_ops, augment.randaugment_magnitude) == (theirs.num_ops, theirs.magnitude) == (2, 9)
    gray = fake(channels=1)
    assert per_channel("mean", (0.2, 0.4), (), gray) == pytest.approx((0.3,)), "of the colors"


def test_without_knobs_training_sees_what_evaluation_sees() -> None:
    images = same(4)
    varied, targets = run(Augment(), images)
    assert torch.equal(varied, PREPARE(images))
    assert targets.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("knobs", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.5}])
@pytest.mark.parametrize("batch", [1, 2, 9])
def test_mixed_targets_are_soft_and_sum_to_one(knobs: dict[str, Any], batch: int) -> None:
    for seed in range(5):
        images, targets = run(Augment(**knobs), same(batch), seed=seed)
        assert images.shape == (batch, 3, 16, 16)
        assert targets.shape == (batch, 10)
        assert targets.dtype == torch.float32
        assert torch.allclose(targets.sum(1), torch.ones(batch))
        assert (targets >= 0).all()
        assert ((targets > 0).sum(1) <= 2).all()


def test_mixup_and_cutmix_take_turns() -> None:
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 16, 16)
    augment = Augment(mixup=1.0, cutmix=1.0)
    kinds = set()
    for seed in range(20):
        images, _ = run(augment, black_and_white, torch.tensor([0, 1]), seed)
        kinds.add("cutmix" if torch.allclose(images.abs(), torch.tensor(2.0)) else "mixup")
    assert kinds == {"mixup", "cutmix"}


def test_cutmix_targets_are_the_shares_of_the_area() -> None:
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 16, 16)
    images, targets = run(Augment(cutmix=1.0), black_and_white, torch.tensor([0, 1]))
    white = (images > 0).float().mean((1, 2, 3))
    assert torch.allclose(targets[:, 1], white, atol=1e-6)


@pytest.mark.parametrize("mode", ["pair", "elem"])
@pytest.mark.parametrize("batch", [1, 2, 7, 12])
def test_pairs_and_images_are_mixed_by_timm(batch: int, mode: Any) -> None:
    images, targets = torch.randn(batch, 3, 14, 10), torch.arange(batch) % 10
    before = images.clone()
    torch.manual_seed(3)
    state = np.random.get_state(legacy=False)  # noqa: NPY002
    mixed, soft = Augment(mixup=0.8, cutmix=1.0, mix_mode=mode, mix_probability=0.8, mix_switch_probability=0.3).mix(
        images, targets, 10
    )
    assert torch.equal(images, before)
    assert str(np.random.get_state(legacy=False)) == str(state)  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(int(torch.randint(2**32, ())))  # noqa: NPY002 what timm draws from
    settings: dict[str, Any] = {"prob": 0.8, "switch_prob": 0.3, "mode": mode, "label_smoothing": 0.0}
    theirs = Mixup(0.8, 1.0, num_classes=10, **settings)  # type: ignore[no-untyped-call]
    even = batch // 2 * 2
    expected, expected_soft = theirs(before[:even].clone(), targets[:even])
    assert torch.equal(mixed[:even], expected)
    assert torch.equal(soft[:even], expected_soft)
    assert torch.equal(mixed[even:], images[even:])
    assert soft.dtype == torch.float32
    assert torch.equal(soft[even:], torch.nn.functional.one_hot(targets[even:], 10).float())


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_shares_of_batches_have_timms_distribution(mixup: float, cutmix: float) -> None:
    """Of 224 pixels; of few, torchvision's boxes for CutMix are smaller, by up to a pixel (at 32, 3 % of the area)."""
    images, targets = torch.zeros(2, 1, 224, 224), torch.tensor([0, 1])
    theirs = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=2)  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 what timm draws from

    def shares(mix: Any) -> list[float]:
        return [float(mix(images.clone(), targets)[1][0, 0]) for _ in range(1000)]

    def ours(*alphas: float) -> list[float]:
        augment = Augment(mixup=alphas[0], cutmix=alphas[1])
        return shares(lambda images, targets: augment.mix(images, targets, 2))

    expected = shares(theirs)
    assert not differ(ours(mixup, cutmix), expected)
    assert differ(ours(mixup / 2, cutmix / 2), expected), "other alphas are seen"


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_probability_and_switch_are_those_of_each_draw(mode: Any) -> None:
    torch.manual_seed(0)
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(-1, 1, 32, 32)
    settings: dict[str, Any] = {"mix_probability": 0.6, "mix_switch_probability": 0.25, "mix_mode": mode}
    augment, kinds = Augment(mixup=1.0, cutmix=1.0, **settings), []
    for _ in range(600):
        mixed, targets = augment.mix(images, torch.tensor([0, 1]), 2)
        assert targets.is_floating_point()
        assert torch.allclose(mixed.mean((1, 2, 3)), targets[:, 1], atol=1e-5)
        constant = bool((mixed[0] == mixed[0, 0, 0, 0]).all())
        kinds.append("none" if float(mixed[0, 0, 0, 0]) in (0, 1) and constant else "mixup" if constant else "cutmix")
    # the standard deviation of each share is 0.02; CutMix's box is empty or complete in a few percent
    assert kinds.count("none") / 600 == pytest.approx(0.41, abs=0.07)
    assert kinds.count("mixup") / 600 == pytest.approx(0.45, abs=0.07)
    assert kinds.count("cutmix") / 600 == pytest.approx(0.14, abs=0.05)


@pytest.mark.parametrize(
    "knobs",
    [
        *KNOBS,
        *({"auto_augment": kind} for kind in get_args(AutoAugment) if kind != "augmix"),  # drawn on the device
        {"color_jitter": 0.4, "crop": "inception", "flip": True, "crop_interpolation": "random"},
        {"mixup": 0.8, "mix_mode": "pair"},
        {"cutmix": 0.8, "mix_mode": "elem", "erasing": 0.5, "erasing_mode": "channel"},
    ],
)
def test_a_device_gets_draws_made_on_the_cpu(knobs: dict[str, Any]) -> None:
    """On meta, reading a number from the device, as on a GPU one would wait for, is an error."""
    images, targets = same(16).to("meta"), torch.arange(16, device="meta")
    prepare = Prepare(image_size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3).to("meta")
    outputs = Augment(**knobs)(images, targets, prepare=prepare, num_classes=10)
    assert {output.device.type for output in outputs} == {"meta"}


def test_mixing_ends_after_its_epochs() -> None:
    augment, prepare = Augment(mixup=1.0, mix_off_epoch=2), Prepare(image_size=(4, 4), mean=(0.5,), std=(0.5,))
    images, targets = torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.arange(4)
    for epoch in range(4):
        _, mixed = augment(images, targets, prepare=prepare, num_classes=4, epoch=epoch)
        assert (mixed.ndim == 2) == (epoch < 2)


def test_prepare_resizes_and_normalizes_like_torchvision() -> None:
    images = fake(samples=4, test_samples=1, size=12).train.images
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    ours = Prepare(image_size=(16, 20), mean=mean, std=std)(images)
    theirs = v2.Compose(
        [
            v2.Resize((16, 20), v2.InterpolationMode.BICUBIC, antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )(images)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert images is not None
    prepare = Prepare(image_size=(12, 12), mean=mean, std=std)
    assert torch.allclose(prepare(images.float()), prepare(images), atol=1e-5)


def test_the_crop_fraction_is_timms_unless_it_is_set() -> None:
    assert [Augment(crop_fraction=fraction).crop_fraction for fraction in (None, 0.95)] == [0.875, 0.95]


def test_erased_pixels_have_the_mean_color() -> None:
    images, _ = run(Augment(erasing=1.0), same(4))
    assert (images == 0).flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("knob", "value", "rule"),
    [
        ("crop_padding", -1, "at least 0"),
        ("degrees", 181.0, "at least 0 and at most 180"),
        ("translate", 1.1, "fraction of the side"),
        ("scale", (1.2, 0.8), "low <= high"),
        ("scale", (0.0, 1.0), "above 0"),
        ("scale", [1.0, 1.0, 1.0], r"\[low, high\]"),
        ("shear", 90.0, "below 90"),
        ("auto_augment", "rand", "one of 'none', 'randaugment', 'trivialaugment'"),
        ("randaugment_ops", 0, "at least 1"),
        ("randaugment_magnitude", 31, "at least 0 and at most 30"),
        ("erasing", 1.5, "probability"),
        ("erasing_area", (0.3, 0.1), "low <= high"),
        ("erasing_mode", "rand", "one of 'const', 'channel', 'pixel'"),
        ("mix_probability", 1.5, "at most 1"),
        ("mix_off_epoch", 0, "at least 1"),
        ("mixup", -0.1, "at least 0"),
        ("cutmix", -0.1, "at least 0"),
        ("crop_scale", (0.0, 1.0), "above 0"),
        ("crop_scale", (0.5, 1.5), "at most 1"),
        ("crop_fraction", 0.0, "above 0"),
    ],
)
def test_a_knob_outside_its_range_is_named(knob: str, value: object, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"{knob}=.*{rule}"):
        Augment(**{knob: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("knobs", "problem"),
    [
        (
            {"crop": "simple", "crop_interpolation": "random"},
            "is for crop=inception, not simple",
        ),
        ({"crop": "inception", "crop_padding": 4}, "crop_padding=4 is for data.augment.crop=simple and none"),
        (
            {"auto_augment": "augmix", "randaugment_std": 0.5},
            "randaugment_std=0.5 is for data.augment.auto_augment=timm_randaugment, not augmix",
        ),
        ({"crop_antialias": False}, "crop_antialias=false works with data.augment.crop_interpolation=bilinear alone"),
    ],
)
def test_knobs_that_exclude_each_other_are_named(knobs: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Augment(**knobs)


@pytest.mark.parametrize(
    ("knobs", "in_memory", "channels", "problem"),
    [
        ({}, False, 2, None),
        ({"crop_padding": 2}, True, 2, None),
        ({"crop_padding": 2}, False, 3, "crop_padding=2 is for data sets in memory"),
        ({"crop_padding": 2, "crop": "simple"}, False, 3, None),
        ({"auto_augment": "randaugment"}, False, 3, None),
        ({"auto_augment": "trivialaugment"}, True, 1, None),
        ({"color_jitter": 0.4}, True, 2, "color_jitter=0.4 works on 1 or 3 channels, and mine has 2; set it to 0.0"),
        ({"auto_augment": "trivialaugment"}, True, 2, "works on 1 or 3 channels, and mine has 2; set it to none"),
    ],
)
def test_settings_that_dont_fit_a_source_are_refused(
    knobs: dict[str, Any], in_memory: bool, channels: int, problem: str | None
) -> None:
    with nullcontext() if problem is None else pytest.raises(ValueError, match=problem):
        Augment(**knobs).check("mine", in_memory=in_memory, channels=channels)
