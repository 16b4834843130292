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
