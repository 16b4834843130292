"""What the rules of the checks are told of a configuration."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vitlab.config.schema import Node
from vitlab.config.view import ConfigView
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.packing import manifest
from vitlab.data.sets.shards import shards


def test_a_reader_answers_nothing_for_what_is_missing_wrong_or_of_another_kind() -> None:
    read = ConfigView({"a": {"b": 3}, "c": None}, bad={"a.bad"})
    values: list[Any] = [read("a.b"), read("a.b", int), read("a.b", str), read("a.x"), read("a.b.c"), read("c")]
    assert values == [3, 3, None, None, None, None]
    assert ConfigView({"a": {"b": 3}}, bad={"a.b"})("a.b") is None


@pytest.mark.parametrize(
    ("data", "left"),
    [
        ({}, 1293),
        ({"max_train_samples": 100}, 100),
        ({"val_fraction": 2.0}, None),
        ({"source": {"_target_": "vitlab.data.sets.image_folder.image_folder"}}, None),
        ({"source": {"_target_": "vitlab.data.sets.fake.fake", "samples": 25}}, 22),
        ({"source": {"_target_": "vitlab.data.sets.shards.shards", "data_dir": "none", "test_fraction": 0.2}}, None),
    ],
    ids=str,
)
def test_the_images_to_train_on_are_counted_where_the_data_s_size_is_known(data: Node, left: int | None) -> None:
    read = ConfigView(
        {"data": {"source": {"_target_": "vitlab.data.sets.digits.digits"}, "val_fraction": 0.1, **data}}, set()
    )
    assert read.train_samples() == left


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
            shutil.copy(folder / manifest.index_file("test"), folder / manifest.index_file(name))
    (folder / manifest.NAME).write_text(json.dumps(content))
    settings: Any = {"data_dir": str(folder), "test_fraction": 0.2}
    node = {"_target_": "vitlab.data.sets.shards.shards", **settings}
    read = ConfigView({"data": {"source": node, "val_fraction": 0.25}}, set())
    source = partial(shards, shuffle_buffer=None, **settings)
    module = DataModule(source=source, augment=Augment(), image_size=8, batch_size=4, seed=0, val_fraction=0.25)
    module.setup()
    assert read.train_samples() == module.samples["train"]


def test_a_steps_batch_is_cut_for_processes_of_all_nodes_and_parts() -> None:
    trainer = {"devices": 3, "accelerator": "cpu", "num_nodes": 2, "accumulate_grad_batches": 4}
    read = ConfigView({"trainer": trainer}, set())
    assert (read.ranks(), read.micro_batches()) == (6, 24)
    assert ConfigView({}, set()).micro_batches() == 1
