"""The corruptions equal ImageNet-C's published code (hendrycks/robustness) on the same image and the same draws.

`imagenet_c.npz` has pixels of that code's results: make_imagenet_c.py at commit 8190fe3 with OpenCV 5.0, scikit-image
0.26 and ImageMagick 6.9.11, in which `np.random` and scikit-image's noise draw from `np.random.default_rng(severity)`.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitlab.data.dataset import MemoryDataset
from vitlab.data.sampler import BatchPlan
from vitlab.data.source import Split
from vitlab.evaluation.checks import CORRUPTIONS
from vitlab.evaluation.corruptions import FUNCTIONS, Array, Corrupted, measure_corruptions, to_bytes


def picture() -> Array:
    y, x = np.mgrid[:224, :224] / 223.0
    waves = [np.sin(9 * x + k) * np.cos(7 * y - k) + (np.hypot(x - 0.4, y - 0.6) < 0.25) for k in range(3)]
    noise = np.random.default_rng(0).normal(scale=0.08, size=(224, 224, 3))
    return (255 * np.clip(0.5 + 0.3 * np.stack(waves, axis=2) + noise, 0, 1)).astype(np.uint8) / 255


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for the frost that the published code has; with the sixth, which it never draws."""
    folder = tmp_path_factory.mktemp("frost")
    for number in range(1, 7):
        noise = np.random.default_rng(number).integers(0, 256, (230 + 3 * number, 250, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"frost{number}.{'png' if number < 4 else 'jpg'}", format="PNG")
    return folder


def changed(name: str, severity: int, image: Array, folder: Path) -> Array:
    values = CORRUPTIONS[name]["severities"][severity - 1]
    own = [*(values if isinstance(values, list) else [values]), *[str(folder)] * (name == "frost")]
    return to_bytes(FUNCTIONS[name](image, np.random.default_rng(severity), *own))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_the_published_one_at_each_severity(name: str, photographs: Path) -> None:
    image, step = picture(), 7 if name == "spatter" else 31  # few drops are small
    with np.load(Path(__file__).parent / "imagenet_c.npz") as golden:
        for severity in range(1, 6):
            found, published = changed(name, severity, image, photographs), golden[f"{name}-{severity}"]
            difference = np.abs(found[5::step, 9::step].astype(int) - published)
            assert difference.max() <= 1, severity
            assert difference.mean() < 0.25, severity  # saturate 3 has exact values of 8 bits, which are rounded down
            assert np.abs(found - 255 * image).mean() > 0.5, f"severity {severity} changes the image"


def test_each_corruption_has_a_function_and_five_severities() -> None:
    assert FUNCTIONS.keys() == CORRUPTIONS.keys()
    assert {len(known["severities"]) for known in CORRUPTIONS.values()} == {5}
    assert [name for name, known in CORRUPTIONS.items() if "alexnet" in known] == [*CORRUPTIONS][:15]


@pytest.mark.parametrize("size", [(8, 8), (32, 48)])
def test_small_images_can_be_corrupted_though_the_lengths_are_for_224_pixels(
    size: tuple[int, int], photographs: Path
) -> None:
    for image in (np.zeros((*size, 3)), np.random.default_rng(0).random((*size, 3))):
        for name in CORRUPTIONS:
            for severity in (1, 5):
                assert changed(name, severity, image, photographs).shape == (*size, 3)


def test_an_image_is_corrupted_alike_in_any_batch_and_gray_ones_remain_gray() -> None:
    images = torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8)
    dataset = Corrupted(MemoryDataset(Split(images.clone(), torch.arange(6)), training=False), "fog", 2, None)
    together = dataset.__getitems__(BatchPlan(0, 0, [*range(6)], 6)).images
    alone = [dataset.__getitems__(BatchPlan(0, 0, [row], 1)).images[0] for row in (4, 2)]
    assert torch.equal(torch.stack(alone), together[[4, 2]])
    assert together.shape == images.shape
    assert not torch.equal(together, images)
    assert torch.equal(dataset.dataset.split.images, images), "the images in memory aren't changed"
    assert dataset.__getitems__(BatchPlan(0, 0, [], 0)).images.shape == (0, 1, 8, 8)


def test_errors_are_averaged_and_divided_by_alexnets(tmp_path: Path) -> None:
    class Tester:  # a corruption's error is a function of its severity, as the test loop would log it
        callback_metrics: dict[str, float]
        is_global_zero = True

        def test(self, module: Any, data: Any, verbose: bool) -> None:
            name, severity = (data.view.keywords[key] for key in ("name", "severity"))
            wrong = 10 * severity + [*CORRUPTIONS].index(name)
            self.callback_metrics = {"test/correct": 100 - wrong, "test/count": 100}

    tester: Any = Tester()
    data: Any = SimpleNamespace(num_classes=1000, view=None)
    options: Any = {"names": "all", "severities": [1, 2, 3, 4, 5]}
    module = SimpleNamespace(split="test")
    found = measure_corruptions(tester, module, data, tmp_path, frost_dir="photographs", **options)
    alexnet = [known["alexnet"] for known in CORRUPTIONS.values() if "alexnet" in known]
    assert found["mean_error"] == pytest.approx(0.3 + 0.07)
    assert found["mce"] == pytest.approx(np.mean([(30 + i) / error for i, error in enumerate(alexnet)]))
    lines = (tmp_path / "corruptions.csv").read_text().splitlines()
    assert lines[0] == "corruption,1,2,3,4,5,mean"
    assert lines[1] == "gaussian_noise,0.1,0.2,0.3,0.4,0.5,0.3"
    assert len(lines) == 1 + len(CORRUPTIONS)
    assert data.view is None
    without = measure_corruptions(tester, module, data, tmp_path, frost_dir=None, **options)
    assert "mce" not in without, "not without frost"
    assert (tmp_path / "corruptions.png").is_file()
