"""The corruptions equal ImageNet-C's published code (hendrycks/robustness) on the same image and the same draws.

`imagenet_c.npz` has pixels of that code's results: make_imagenet_c.py at commit 8190fe3 with OpenCV 5.0, scikit-image
0.26 and ImageMagick 6.9.11, in which `np.random` and scikit-image's noise draw from `np.random.default_rng(severity)`.
"""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from vitlab.evaluation.checks import Corruption
from vitlab.evaluation.corruptions import CORRUPTIONS, Array, to_bytes


def picture() -> Array:
    y, x = np.mgrid[:224, :224] / 223.0
    waves = [np.sin(9 * x + k) * np.cos(7 * y - k) + (np.hypot(x - 0.4, y - 0.6) < 0.25) for k in range(3)]
    noise = np.random.default_rng(0).normal(scale=0.08, size=(224, 224, 3))
    return np.uint8(255 * np.clip(0.5 + 0.3 * np.stack(waves, axis=2) + noise, 0, 1)) / 255


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for the frost that the published code has; with the sixth, which it never draws."""
    folder = tmp_path_factory.mktemp("frost")
    for number in range(1, 7):
        noise = np.random.default_rng(number).integers(0, 256, (230 + 3 * number, 250, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"frost{number}.{'png' if number < 4 else 'jpg'}", format="PNG")
    return folder


def changed(name: str, severity: int, image: Array, folder: Path) -> Array:
    function, values = CORRUPTIONS[name]
    own = values[severity - 1] if isinstance(values[severity - 1], tuple) else (values[severity - 1],)
    random = np.random.default_rng(severity)
    return to_bytes(function(image, random, *own, *([str(folder)] if name == "frost" else [])))


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "glass_blur"] + ["glass_blur"])
def test_a_corruption_is_the_published_one_at_each_severity(name: str, photographs: Path) -> None:
    image, step = picture(), 7 if name == "spatter" else 31
    with np.load(Path(__file__).parent / "imagenet_c.npz") as golden:
        for severity in range(1, 6):
            found, published = changed(name, severity, image, photographs), golden[f"{name}-{severity}"]
            difference = np.abs(found[5::step, 9::step].astype(int) - published)
            assert difference.max() <= 1, severity
            assert difference.mean() < 0.25, severity  # saturate 3 has exact values of 8 bits, which are rounded down
            assert np.abs(found - 255 * image).mean() > 0.5, f"severity {severity} changes the image"


def test_the_names_of_the_settings_are_those_of_the_functions() -> None:
    assert get_args(Corruption) == tuple(CORRUPTIONS)
    assert {len(values) for _, values in CORRUPTIONS.values()} == {5}


@pytest.mark.parametrize("size", [(8, 8), (32, 48)])
def test_small_images_can_be_corrupted_though_the_lengths_are_for_224_pixels(
    size: tuple[int, int], photographs: Path
) -> None:
    for image in (torch.zeros(*size, 3).numpy(), np.random.default_rng(0).random((*size, 3))):
        for name in CORRUPTIONS:
            for severity in (1, 5):
                assert changed(name, severity, image, photographs).shape == (*size, 3)
