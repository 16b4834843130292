"""The data path beside its peers, on tiny sets; what is measured is checked, not how fast it is."""

import math
import sys
from pathlib import Path

import pytest
from PIL import Image

from vitlab.benchmarking.images import CPU_MS, PER_CORE, Loading, photographs
from vitlab.benchmarking.timing import DEVICE_MS, Clock


def test_every_peer_does_the_same_work() -> None:
    part = Loading(
        recipes=("digits", "cifar trivialaugment"),
        batch_memory=16,
        images=20,
        image_size=32,
        workers=(0,),
        batch_size=8,
    )
    waits = list[None]()
    clock = Clock(rounds=1, seconds=0.0, synchronise=lambda: waits.append(None), device_timer=lambda *_: 1.0)
    memory, more, files, default = part.cases(clock)
    for case in (memory, more):
        assert [measured.name for measured in case.measured] == ["vitlab", "torchvision, tensors", "torchvision, PIL"]
        assert {measured.items for measured in case.measured} == {16}
    peers = ["torchvision, PIL", "torchvision.io, tensors", "timm"]
    assert ["bilinear" in files.name, "bicubic" in default.name] == [True, True]
    for case in (files, default):
        assert [measured.name for measured in case.measured] == ["vitlab", *peers]
        assert case["vitlab"].figures["pixels differ"] == 0
        assert case["vitlab"].figures["logits differ"] < 1e-6
        assert 0 < case["vitlab"].figures["Pillow's differ"] < 1
    assert [measured.items for measured in files.measured] == [20, 20, 20, 16], "timm's leaves out an incomplete batch"
    assert not waits, "nothing of it is done by a GPU"
    assert not any(
        DEVICE_MS in measured.figures for case in (memory, more, files, default) for measured in case.measured
    )
    assert all(math.isfinite(measured.rate) for case in (memory, more, files, default) for measured in case.measured)


def test_a_folder_of_more_classes_than_files_to_take_is_measured(tmp_path: Path) -> None:
    photographs(tmp_path / "made", 44)
    for number, file in enumerate(sorted(tmp_path.glob("made/train/*/*.jpg"))):
        place = tmp_path / "set" / "train" / f"n{number // 2:03}"
        place.mkdir(parents=True, exist_ok=True)
        file.rename(place / f"{number}.JPEG")
    part = Loading(
        recipes=(),
        folder=str(tmp_path / "set"),
        images=21,
        image_size=32,
        workers=(0, 1),
        batch_size=7,
        interpolations=("bicubic",),
        scaled_decoding=True,
    )
    alone, shared = part.cases(Clock(rounds=1, seconds=0.0))
    for case in (alone, shared):
        assert case.name.startswith("21 JPEG files")
        assert "bicubic crops of 32, scaled decoding" in case.name
        assert {measured.items for measured in case.measured} == {21}
        assert case["vitlab"].figures["pixels differ"] > 0
        assert case["vitlab"].figures["logits differ"] > 0
    assert [[goal.figure for goal in case.goals] for case in (alone, shared)] == [[None], [CPU_MS]]
    if sys.platform == "linux":
        for measured in [*alone.measured, *shared.measured]:
            # a file of 500 x 375 pixels takes a millisecond or more to decode, wherever it is done
            assert 0.2 < measured.figures[CPU_MS] < 100
            assert measured.figures[PER_CORE] == pytest.approx(1000 / measured.figures[CPU_MS])
        assert [goal.least for goal, *_ in shared.outcomes()] == [2.0]


def test_the_files_are_of_the_size_of_imagenets(tmp_path: Path) -> None:
    photographs(tmp_path, 5)
    files = sorted(tmp_path.glob("train/*/*.jpg"))
    assert len(files) == 5
    for file in files:
        with Image.open(file) as image:
            assert (image.size, image.format) == ((500, 375), "JPEG")


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"images": 19}, "loading.images=19 must be at least 20"),
        ({"images": 31}, "loading.images=31 must be at least loading.batch_size=32"),
        ({"batch_size": 0}, "loading.batch_size=0"),
        ({"workers": (-1,)}, r"loading.workers=\[-1\]"),
        ({"folder": "nowhere"}, "loading.folder=nowhere has no folder train/"),
    ],
)
def test_what_cannot_be_measured_is_refused(knobs: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Loading(**knobs)  # type: ignore[arg-type]
