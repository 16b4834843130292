"""A shard as WebDataset itself reads it, and what the index says about it."""

import gc
from pathlib import Path

import pytest
import torch
from webdataset import WebDataset

from pictures import SETTINGS, Packed, source
from vitlab.data.packing.manifest import KINDS, kind_of
from vitlab.data.packing.shard_writer import Item, packing_order, write_tar
from vitlab.data.sets.shards import shards

# what WebDataset leaves open while it iterates
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_webdataset_reads_every_image_and_class_in_our_order(packed: Packed) -> None:
    ours = shards(data_dir=str(packed())).train
    files = sorted(map(str, (packed() / "train").glob("*.tar")))
    assert len(files) > 3
    theirs = list(WebDataset(files, shardshuffle=False))
    gc.collect()
    assert [sample["__key__"] for sample in theirs] == [f"{number:09d}" for number in range(len(ours))]
    for sample, file, label in zip(theirs, ours.files or [], ours.labels.tolist(), strict=True):
        data = file.read()  # type: ignore[attr-defined]
        assert sample[KINDS[kind_of(data)]] == data
        assert int(sample["cls"]) == label


def test_offsets_say_where_each_image_begins_also_of_two_that_are_equal(tmp_path: Path) -> None:
    items = [Item(b"\xff\xd8 first", 2, 0), Item(b"\x89PNG " + bytes(600), 0, 1), Item(b"\xff\xd8 first", 1, 2)]
    offsets = write_tar(tmp_path / "shard.tar", items)
    content = (tmp_path / "shard.tar").read_bytes()
    assert offsets == sorted(set(offsets))
    assert [content[start:][: len(item.data)] for start, item in zip(offsets, items, strict=True)] == [
        item.data for item in items
    ]


def test_training_images_are_shuffled_once_by_the_seed_and_the_others_stay_in_order(drawn: Path) -> None:
    orders = packing_order(source(drawn), SETTINGS)
    assert sorted(orders["train"].tolist()) == list(range(74))
    assert orders["train"].tolist() != list(range(74))
    assert orders["test"].tolist() == list(range(20))
    assert torch.equal(orders["train"], packing_order(source(drawn), SETTINGS)["train"])
