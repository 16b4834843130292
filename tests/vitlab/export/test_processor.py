"""The exported preprocessing gives the pixels that were evaluated; where a library can't, the export says so."""

from pathlib import Path
from typing import Any

import pytest

from conftest import Exportable
from vitlab.export.export import export_network
from vitlab.export.processor import SIZES

GIVEN: dict[str, Any] = {"fold": False, "tolerance": 1e-4, "license": None}


@pytest.mark.parametrize("size", [32, (84, 112), (112, 84)], ids=str)
@pytest.mark.parametrize("fraction", [0.875, 1.0, 0.9])
def test_timm_crops_the_pixels_that_were_evaluated(
    size: int | tuple[int, int], fraction: float, exportable: Exportable, tmp_path: Path
) -> None:
    trained = exportable(image_size=size, patch_size=4, crop_fraction=fraction)
    record = export_network(trained, "timm", tmp_path / "out", **GIVEN)
    through = record["through_preprocessing"]
    assert (through["images"], through["other_pixels"]) == (len(SIZES), [])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "for equal pixels.\nThrough the preprocessing of this folder, on 12 images of odd sizes, they" in card
    assert "crops other pixels" not in card


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["timm", "hf"])
def test_squashed_images_have_the_pixels_that_were_evaluated(
    channels: int, name: str, exportable: Exportable, tmp_path: Path
) -> None:
    trained = exportable(in_channels=channels)
    record = export_network(trained, name, tmp_path / "out", **GIVEN)
    assert record["through_preprocessing"]["other_pixels"] == []


def test_sizes_that_a_library_crops_elsewhere_are_told(
    exportable: Exportable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = exportable(image_size=(84, 112), patch_size=4, crop_fraction=0.875)
    record = export_network(trained, "hf", tmp_path / "out", **GIVEN)
    through = record["through_preprocessing"]
    assert "83 x 83" in through["other_pixels"], "transformers can't cover a rectangle, and pads"
    assert "375 x 500" not in through["other_pixels"]
    assert through["largest_difference"] > 1e-3
    words = "crops other pixels than were evaluated"
    assert words in caplog.text
    assert words in (tmp_path / "out" / "README.md").read_text()
