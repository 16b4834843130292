"""The preprocessing of weights is read from the configuration next to them."""

from pathlib import Path
from typing import Any

import pytest

from vitlab.weights.files import FileContent
from vitlab.weights.layouts import LAYOUTS
from vitlab.weights.locate import WeightFiles
from vitlab.weights.preprocessing import Preprocessing, from_transformers, preprocessing


def opened(**said: Any) -> WeightFiles:
    nothing: dict[str, Any] = {"config": {}, "preprocessor": {}, "record": {}, "timm_name": None}
    return WeightFiles(source="x", file=Path("x"), content=FileContent({}, {}), **nothing | said)


def test_timms_configuration_is_used() -> None:
    cfg = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "interpolation": "bilinear", "crop_pct": 0.9}
    found = preprocessing(opened(config={"pretrained_cfg": cfg}), LAYOUTS["timm"])
    assert found == Preprocessing((0.5,) * 3, (0.2,) * 3, "bilinear", 0.9, "timm's pretrained_cfg")
    assert found.settings() == {"mean": [0.5] * 3, "std": [0.2] * 3, "interpolation": "bilinear"}


@pytest.mark.parametrize(
    ("said", "crop"),
    [
        ({"size": {"height": 224, "width": 224}}, 1.0),
        (
            {"do_center_crop": True, "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
            0.875,
        ),
        ({"do_center_crop": True, "size": 256, "crop_size": 224}, 0.875),
        ({"do_center_crop": False, "size": 256, "crop_size": 224}, 1.0),
    ],
)
def test_transformers_configuration_is_used(said: dict[str, Any], crop: float) -> None:
    found = from_transformers({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "resample": 3, **said})
    assert found == Preprocessing((0.1, 0.2, 0.3), (1, 1, 1), "bicubic", crop, "preprocessor_config.json")


def test_images_that_were_not_normalized_keep_their_values() -> None:
    found = from_transformers({"do_normalize": False, "image_mean": [0.5] * 3, "resample": 2})
    assert (found.mean, found.std, found.interpolation) == ((0.0,) * 3, (1.0,) * 3, "bilinear")


def test_googles_files_are_of_images_from_minus_one_to_one_and_others_are_unknown() -> None:
    assert preprocessing(opened(), LAYOUTS["google"]).mean == (0.5, 0.5, 0.5)
    assert preprocessing(opened(), LAYOUTS["torchvision"]) == Preprocessing()


def test_a_runs_own_record_is_used() -> None:
    record = {"preprocessing": {"mean": [0.3], "std": [0.4], "interpolation": "bicubic", "crop_fraction": 0.9}}
    assert preprocessing(opened(record=record), LAYOUTS["timm"]) == Preprocessing(
        (0.3,), (0.4,), "bicubic", 0.9, "its run"
    )
