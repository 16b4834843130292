"""What is known of data before it is loaded, and what its settings and those of batches demand of each other."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vitlab.cli.data_checks import train_samples
from vitlab.config.schema import Node
from vitlab.config.view import ConfigView
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.packing import manifest
from vitlab.data.sets.shards import shards

Found = Callable[..., list[str]]
CPU = "trainer.accelerator=cpu"

ONE_LINE: list[tuple[list[str], str]] = [
    (["data.val_fraction=0.0"], "data.val_fraction=0.0 must be above 0 and below 1 (the best checkpoint"),
    (["data.val_fraction=1.5"], "data.val_fraction=1.5 must be above 0 and below 1"),
    (["data.val_fraction=0.001"], "to train on and 2 to validate on: fewer than one of each of the 10 classes"),
    (["data.val_fraction=0.9999"], "into 0 to train on and 1437 to validate on"),
    (["data.num_workers=-1"], "data.num_workers=-1 must be at least 0"),
    (["data.max_train_samples=0"], "data.max_train_samples=0 must be at least 1"),
    (["data.eval_batch_size=0"], "data.eval_batch_size=0 must be at least 1"),
    (["data.augment.erasing=2"], "data.augment.erasing=2 must be at least 0 and at most 1 (a probability)"),
    (["data.augment.scale=[2,1]"], "data.augment.scale=[2, 1] must be [low, high] with low <= high"),
    (["data.max_skipped=1.0"], "data.max_skipped=1.0 must be at least 0 and below 1 (a share of the images)"),
    (["data.on_error=skip"], "data.on_error=skip is for image folders, and digits is none; leave it out"),
    (
        ["data=image_folder", "data_dir=.", "data.on_error=skip", "data.scan=none"],
        "data.on_error=skip decodes every image",
    ),
    (["data.scaled_decoding=true"], "data.scaled_decoding=true is for JPEG files, and digits lies in memory"),
    (["data.on_error=ignore"], "data.on_error=ignore is not one of 'raise', 'skip'"),
    (["data=image_folder", "data_dir=no/such"], "no/such is not a folder; data=image_folder wants"),
    # batch size against processes, accumulation and samples
    (["batch_size=0"], "batch_size=0 must be at least 1"),
    (["batch_size=3", CPU, "trainer.devices=4"], "leaves nothing for some of 4 parts (4 processes"),
    (["batch_size=3", "trainer.accumulate_grad_batches=4"], "the least is 4"),
    (["batch_size=3", CPU, "trainer.devices=4"], "(4 processes x"),
    (
        ["data.max_train_samples=5", CPU, "trainer.devices=8", "schedule.warmup_steps=0"],
        "batch_size=64: 5 images can't be shared by 8 processes",
    ),
    (["data.drop_last=true", "batch_size=1294"], "more than the 1293 images to train on, and data.drop_last drops"),
]


@pytest.mark.parametrize(
    ("overrides", "words"), ONE_LINE, ids=lambda case: " ".join(case) if type(case) is list else ""
)
def test_one_mistake_is_one_line_that_names_value_knob_and_remedy(
    found: Found, overrides: list[str], words: str
) -> None:
    (line,) = found(*overrides)
    assert words in line


@pytest.mark.parametrize(
    ("data", "left"),
    [
        ({}, 1293),
        ({"max_train_samples": 100}, 100),
        ({"source": {"_target_": "vitlab.data.sets.image_folder.image_folder"}}, None),
        ({"source": {"_target_": "vitlab.data.sets.fake.fake", "samples": 25}}, 22),
        ({"source": {"_target_": "vitlab.data.sets.shards.shards", "data_dir": "none", "test_fraction": 0.2}}, None),
    ],
    ids=str,
)
def test_the_images_to_train_on_are_counted_where_the_data_s_size_is_known(data: Node, left: int | None) -> None:
    view = ConfigView(
        {"data": {"source": {"_target_": "vitlab.data.sets.digits.digits"}, "val_fraction": 0.1, **data}}, set()
    )
    assert train_samples(view) == left


@pytest.mark.parametrize("splits", [("train",), ("train", "test"), ("train", "test", "val")], ids="+".join)
def test_what_a_packed_set_says_of_its_size_is_what_training_gets(
    packed: Callable[..., Path], tmp_path: Path, splits: tuple[str, ...]
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(packed(), folder)
    content = json.loads((folder / manifest.NAME).read_text())
    parts = content["splits"]
    content["splits"] = {name: parts.get(name, parts["test"]) for name in splits}
    for name in splits:
        if name not in parts:  # the same files by another name
            shutil.copy(folder / "test.index.npy", folder / f"{name}.index.npy")
    (folder / manifest.NAME).write_text(json.dumps(content))
    settings: Any = {"data_dir": str(folder), "test_fraction": 0.2}
    node = {"_target_": "vitlab.data.sets.shards.shards", **settings}
    view = ConfigView({"data": {"source": node, "val_fraction": 0.25}}, set())
    source = partial(shards, shuffle_buffer=None, **settings)
    module = DataModule(source=source, augment=Augment(), image_size=8, batch_size=4, seed=0, val_fraction=0.25)
    module.setup()
    assert train_samples(view) == module.samples["train"]
