"""A shard is read as it was written, and as others write them; one that is no part of a data set is refused."""

import zlib
from pathlib import Path

import pytest

from image_fixtures import Members, tar
from vitlab.data.packing.manifest import NotShardedData
from vitlab.data.packing.tar import Item, read_tar, write_tar
from vitlab.storage.atomic import file_sha256


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
