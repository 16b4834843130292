"""Crops of photographs, compared with those of a full decoding in pixels and in a network's logits."""

import pytest

from vitlab.benchmarking.folders import Interpolation, jpeg_files
from vitlab.benchmarking.images import photographs
from vitlab.benchmarking.quality import quality, spread


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("photographs")
    photographs(folder, 6)
    return [str(file) for file in jpeg_files(folder / "train")]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_ours_is_the_full_decoding_and_pillows_is_near(files: list[str], interpolation: Interpolation) -> None:
    found = quality(files, 40, interpolation)
    assert found["pixels differ"] == 0
    assert found["logits differ"] < 1e-6
    assert 0 < found["Pillow's differ"] < 1
    assert 1e-4 < found["Pillow's logits differ"] < 0.2


def test_a_scaled_decoding_differs_in_both(files: list[str]) -> None:
    exact, scaled = (quality(files, 32, "bilinear", scaled=scaled) for scaled in (False, True))
    assert exact["pixels differ"] == 0 < scaled["pixels differ"]
    assert exact["logits differ"] < 1e-6 < 1e-3 < scaled["logits differ"] < 1
    assert scaled["Pillow's logits differ"] == pytest.approx(exact["Pillow's logits differ"], rel=1e-3)


def test_files_are_taken_at_even_distances() -> None:
    assert spread(3, 4) == [0, 1, 2]
    assert spread(8, 4) == [0, 2, 4, 6]
    assert spread(9, 4) == [0, 2, 4, 6]
    assert len(set(spread(1000, 64))) == 64
