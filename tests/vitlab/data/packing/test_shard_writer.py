"""A shard as WebDataset itself reads it, and what the index says about it."""

import gc
import tarfile
import zlib
from pathlib import Path

import pytest
import torch
from webdataset import WebDataset

from image_fixtures import SETTINGS, Packed, source
from vitlab.data.packing.shard_writer import Item, image_suffix, packing_order, write_tar
from vitlab.data.sets.shards import shards

# what WebDataset leaves open while it iterates
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BLOCK = tarfile.BLOCKSIZE


def test_webdataset_reads_every_image_and_class_in_our_order(packed: Packed) -> None:
    ours = shards(data_dir=str(packed())).train
    files = sorted(map(str, (packed() / "train").glob("*.tar")))
    assert len(files) > 3
    theirs = list(WebDataset(files, shardshuffle=False))
    gc.collect()
    assert [sample["__key__"] for sample in theirs] == [f"{number:09d}" for number in range(len(ours))]
    for sample, file, label in zip(theirs, ours.files or [], ours.labels.tolist(), strict=True):
        data = file.read()  # type: ignore[attr-defined]
        assert sample[image_suffix(data)] == data
        assert int(sample["cls"]) == label


def test_training_images_are_shuffled_once_by_the_seed_and_the_others_stay_in_order(drawn: Path) -> None:
    orders = packing_order(source(drawn), SETTINGS)
    assert sorted(orders["train"].tolist()) == list(range(74))
    assert orders["train"].tolist() != list(range(74))
    assert orders["test"].tolist() == list(range(20))
    assert torch.equal(orders["train"], packing_order(source(drawn), SETTINGS)["train"])


def test_offsets_say_where_each_image_begins_also_of_two_that_are_equal(tmp_path: Path) -> None:
    items = [Item(b"\xff\xd8 first", 2, 0), Item(b"\x89PNG " + bytes(600), 0, 1, 7), Item(b"\xff\xd8 first", 1, 2)]
    table = write_tar(file := tmp_path / "shard.tar", items)
    content = file.read_bytes()
    for entry, item in zip(table, items, strict=True):
        assert content[entry["offset"] :][: entry["size"]] == item.data
        assert (entry["label"], entry["crc"], entry["row"]) == (item.label, zlib.crc32(item.data), item.row)
    assert len(set(table["offset"].tolist())) == 3
