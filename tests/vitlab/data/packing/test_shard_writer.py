"""A shard as WebDataset itself reads it, and what the index says about it."""

import gc
import zlib
from pathlib import Path

import pytest
import torch
from webdataset import WebDataset

from image_fixtures import SETTINGS, Members, Packed, source, tar
from vitlab.data.packing.manifest import NotShardedData
from vitlab.data.packing.shard_writer import Item, image_suffix, packing_order, read_tar, write_tar
from vitlab.data.sets.shards import shards
from vitlab.storage.atomic import file_sha256

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
        assert sample[image_suffix(data)] == data
        assert int(sample["cls"]) == label


def test_training_images_are_shuffled_once_by_the_seed_and_the_others_stay_in_order(drawn: Path) -> None:
    orders = packing_order(source(drawn), SETTINGS)
    assert sorted(orders["train"].tolist()) == list(range(74))
    assert orders["train"].tolist() != list(range(74))
    assert orders["test"].tolist() == list(range(20))
    assert torch.equal(orders["train"], packing_order(source(drawn), SETTINGS)["train"])


def test_offsets_say_where_each_image_begins_also_of_two_that_are_equal(tmp_path: Path) -> None:
    items = [Item(b"\xff\xd8 first", 2, 0), Item(b"\x89PNG " + bytes(600), 0, 1), Item(b"\xff\xd8 first", 1, 2)]
    write_tar(file := tmp_path / "shard.tar", items)
    table, about = read_tar(file, "train/000000.tar")
    content = file.read_bytes()
    assert about == {"file": "train/000000.tar", "images": 3, "bytes": len(content), "sha256": file_sha256(file)}
    for entry, item in zip(table, items, strict=True):
        assert content[entry["offset"] :][: entry["size"]] == item.data
        assert (entry["label"], entry["crc"]) == (item.label, zlib.crc32(item.data))
    assert len(set(table["offset"].tolist())) == 3


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([("a.png", b"x")], "1 of 1 images have no class (.cls, from 0), first a"),
        ([("a.png", b"x"), ("a.jpg", b"x"), ("a.cls", b"1")], "has two images for the sample a"),
        ([("a.png", b"x"), ("a.cls", b"-1")], "1 of 1 images have no class (.cls, from 0), first a"),
        ([("a.png", b"x"), ("a.cls", b"dog")], "can't be indexed: invalid literal for int()"),
        ([("a.txt", b"x")], "has no images; remove it"),
    ],
)
def test_a_tar_file_that_is_no_data_set_is_named(tmp_path: Path, members: Members, problem: str) -> None:
    tar(file := tmp_path / "0.tar", members)
    with pytest.raises(NotShardedData) as caught:
        read_tar(file, "0.tar")
    assert problem in str(caught.value)
    assert str(caught.value).startswith(f"{file} can't be indexed: ")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (file := tmp_path / "0.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(NotShardedData, match=r"0\.tar can't be indexed"):
        read_tar(file, "0.tar")
