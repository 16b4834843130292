"""What a data set is: its splits, its source, and what is known of it beforehand."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from conftest import SRC, Configure
from vitlab.cli import checks
from vitlab.config import allowlist
from vitlab.config.schema import Node
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.fake import fake
from vitlab.data.source import Facts, Source, Split, loader_facts, loader_settings

IMAGES, LABELS = torch.zeros(6, 3, 8, 8).byte(), torch.arange(6) % 2


def source(split: Split, **others: Any) -> Source:
    known = {"name": "mine", "classes": ("a", "b"), "channels": 3, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    return Source(**{**known, "native_size": 8, "train": split, "test": split, **others})


# ------------------------------------------------------------------------------------------- what a source is made of


def test_a_split_selects_in_the_order_asked_for() -> None:
    part = Split(None, torch.tensor([3, 4, 5]), ["a", "b", "c"]).subset(torch.tensor([2, 0]))
    assert part.files == ["c", "a"]
    assert part.labels.tolist() == [5, 3]
    assert len(part) == 2


def test_files_are_of_three_channels_and_images_in_memory_of_the_size_and_channels_stated() -> None:
    files, images = Split(None, LABELS, [f"{i}.png" for i in range(6)]), Split(IMAGES, LABELS)
    assert source(files).image_problem(files) is None
    for size in (8, None):
        assert source(images, native_size=size).image_problem(images) is None
    made = source(images)
    for height, width in ((9, 8), (8, 9)):
        other = Split(torch.zeros(6, 3, height, width).byte(), LABELS)
        assert made.image_problem(other) == f"images have {height} x {width} pixels, and native_size=8"
    last = Split(torch.zeros(6, 8, 8, 3).byte(), LABELS)
    assert "channels are last" in str(made.image_problem(last))
    assert "channels are last" not in str(made.image_problem(Split(torch.zeros(6, 1, 8, 8).byte(), LABELS)))


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64, np.bool_])
def test_arrays_and_integers_of_any_type_are_taken(kind: Any) -> None:
    array = np.zeros((6, 3, 8, 8), np.uint8)
    array.flags.writeable = False  # as memory maps are
    mine = source(Split(array, (np.arange(6) % 2).astype(kind)), mean=np.full(3, 0.5), classes=["a", "b"])
    assert mine.train.images is not None
    assert mine.train.images.dtype == torch.uint8
    assert mine.train.labels.dtype == torch.int64
    assert (mine.mean, mine.classes) == ((0.5, 0.5, 0.5), ("a", "b"))
    assert mine.train.digest() == Split(IMAGES, LABELS).digest()


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        (IMAGES / 255, LABELS, r"float32 \[6, 3, 8, 8\]; expected uint8 .*; use \(255 \* images\)"),
        (IMAGES.numpy().astype(np.float64), LABELS, "float64 .*; expected uint8"),
        (IMAGES.long(), LABELS, "int64 .*; expected uint8 .* with values from 0 to 255$"),
        (
            IMAGES[:, 0],
            LABELS,
            r"uint8 \[6, 8, 8\]; expected uint8 .* use images\[:, None\] of gray images",
        ),
        (IMAGES, LABELS.float(), "labels are float32"),
        (IMAGES, torch.eye(6).long(), r"labels are int64 \[6, 6\]; .*; use labels.argmax\(1\)"),
        (IMAGES, LABELS[:5], "6 images have 5 labels"),
        (None, LABELS, "either images or files"),
    ],
)
def test_a_split_of_something_else_says_what_is_expected(images: Any, labels: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Split(images, labels)


@pytest.mark.parametrize(
    ("images", "settings", "expected"),
    [
        (IMAGES.permute(0, 2, 3, 1), {}, r"mine: images are uint8 \[6, 8, 8, 3\], .* so move that axis to 1"),
        (
            IMAGES,
            {"channels": 1, "mean": (0.5,), "std": (0.2,)},
            r"3, 8, 8\], and channels=1, in its train split$",
        ),
        (IMAGES, {"native_size": 16}, "images have 8 x 8 pixels, and native_size=16"),
        (IMAGES, {"mean": (0.5,)}, r"mine has mean=\(0.5,\); expected a number for each of channels=3"),
        (IMAGES, {"mean": (125.3, 123.0, 113.9)}, "mean=.*of images scaled to"),
        (IMAGES, {"std": (0.2, 0.2, 0.0)}, "mine has std="),
        (IMAGES, {"classes": ("a",)}, "the label 1 in its train split, and 1 classes"),
        (None, {"channels": 1, "mean": (0.5,), "std": (0.2,)}, "files are decoded to 3 channels, and channels=1"),
    ],
)
def test_a_source_that_does_not_fit_together_says_what_is_expected(images: Any, settings: Node, expected: str) -> None:
    split = Split(images, LABELS, None if images is not None else ["file"] * 6)
    with pytest.raises(ValueError, match=expected):
        source(split, **settings)


# ---------------------------------------------------------------------------------------- what is known of it before

MINE = """
import os
from vitlab.data.source import Facts, Source, Split

def problems(*, samples, **_):
    if samples % 2:
        yield f"data.source.samples={samples} is odd"

def count(*, samples, **_):
    return samples, True

@Facts(native_size=12, channels=1, num_classes=2, in_memory=True, problems=problems, count=count)
def pictures(*, samples: int = 40) -> Source:
    import numpy as np
    labels = np.arange(samples) % 2
    images = (np.ones((samples, 1, 12, 12)) * labels[:, None, None, None] * 255).astype(np.uint8)
    split = Split(images, labels)
    return Source("pictures", ("black", "white"), 1, (0.5,), (0.5,), 12, split, split, split)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The target of a set in a Python file of the user's own."""
    (tmp_path / "my_pictures.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_pictures", raising=False)
    return "my_pictures.pictures"


def test_a_set_in_one_file_of_the_users_own_is_known_and_checked_like_any_other(
    mine: str, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loader_facts(mine) == Facts()
    assert "my_pictures" not in sys.modules, "it may not be called, so it isn't imported"
    monkeypatch.setattr(allowlist, "ALLOWED", ("my_pictures",))
    own = [f"data.source._target_={mine}", "schedule.warmup_steps=0"]
    config = configure(*own)
    assert (config["name"], config["image_size"]) == ("pictures-vit_64x4_p2-12px", 12)
    assert checks.problems(train.main, config) == []
    for setting, problem in (
        ("+data.source.samples=3", "data.source.samples=3 is odd"),
        (
            "data.drop_last=true",
            "batch_size=64 is more than the 40 images to train on",
        ),
        ("data.on_error=skip", "data.on_error=skip is for image folders, and pictures is none; leave it out"),
        ("+model.num_classes=3", "model.num_classes=3, but the data has 2 classes"),
    ):
        (found,) = checks.problems(train.main, configure(*own, setting))
        assert found.startswith(problem)


def test_a_loader_that_says_nothing_of_itself_needs_an_image_size(
    mine: str, tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowlist, "ALLOWED", ("my_pictures",))
    file = tmp_path / "my_pictures.py"
    file.write_text(re.sub("(?m)^@Facts.*$", "", file.read_text()))
    assert "my_pictures.pictures does not say how large its images are; set image_size" in str(
        configure(f"data.source._target_={mine}")
    )
    assert configure(f"data.source._target_={mine}", "image_size=12")["name"] == "pictures-vit_64x4_p2-12px"


def test_settings_are_those_of_the_signature_where_none_are_set() -> None:
    node = {"_target_": "vitlab.data.sets.fake.fake", "_partial_": True, "samples": 7}
    assert loader_settings(node) == {"samples": 7, "test_samples": 256, "size": 32, "channels": 3, "num_classes": 10}


def test_wrong_facts_are_reported_when_the_data_is_loaded() -> None:
    def loaded(loader: Callable[[], Source]) -> None:
        DataModule(source=loader, augment=Augment(), image_size=16, batch_size=8, seed=0).setup()

    def load() -> Source:
        return fake(samples=40, test_samples=20, num_classes=2)

    loaded(load)
    with pytest.raises(ValueError, match="fake was loaded with channels=3, and its loader's @Facts has channels=1"):
        loaded(Facts(native_size=32, channels=1)(load))


def test_sets_are_imported_without_torch_and_their_settings_have_names() -> None:
    heavy = ("torch", "torchvision", "numpy", "sklearn", "PIL", "filelock", "datasets", "huggingface_hub")
    code = (
        "import importlib, inspect, pkgutil, sys\n"
        "from vitlab.data import sets\n"
        "names = [f'vitlab.data.sets.{module.name}' for module in pkgutil.iter_modules(sets.__path__)]\n"
        "modules = [importlib.import_module(name) for name in names]\n"
        "loaders = [f for m in modules for f in vars(m).values() if hasattr(f, 'facts')]\n"
        "print(len(loaders), {p.kind.name for f in loaders for p in inspect.signature(f).parameters.values()},\n"
        f"      [name for name in {heavy} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=SRC, capture_output=True, text=True, check=True)
    assert done.stdout == "9 {'KEYWORD_ONLY'} []\n"


def test_a_part_shares_the_images_and_has_its_own() -> None:
    images = torch.randint(256, (20, 1, 2, 2), dtype=torch.uint8)
    every = Split(images, torch.arange(20) % 3)
    for indices in (torch.tensor([19, 3, *range(4, 15)]), torch.tensor([5, 1])):
        part = every.subset(indices)
        alone = Split(images[indices], every.labels[indices])
        assert part.stored is not None
        assert (part.stored.data_ptr() == images.data_ptr()) == (len(indices) > 10), "few are copied: the rest is freed"
        assert part.images is not None
        assert torch.equal(part.images, images[indices])
        assert part.digest() == alone.digest()
        again, order = part.subset(torch.tensor([1, 0])), torch.tensor([1, 0])
        assert torch.equal(again.images_at(order), images[indices[:2]])
        assert (len(again), again.digest()) == (2, alone.subset(order).digest())
