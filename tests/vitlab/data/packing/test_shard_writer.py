"""A shard as WebDataset itself reads it, and what the index says about it."""

import gc
import io
import tarfile
import zlib
from collections.abc import Callable
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
        ([("a.png", b"x"), ("a.cls", b"1"), ("a.label", b"2")], "has two classes for the sample a"),
        ([("a.png", b"x"), ("a.cls", b"1"), ("b.heic", b"x"), ("b.cls", b"1")], "1 samples have a class and no image"),
        ([("a.txt", b"x")], "has no images; remove it"),
    ],
)
def test_a_tar_file_that_is_no_data_set_is_named(tmp_path: Path, members: Members, problem: str) -> None:
    tar(file := tmp_path / "0.tar", members)
    with pytest.raises(NotShardedData) as caught:
        read_tar(file, "0.tar")
    assert problem in str(caught.value)
    assert str(caught.value).startswith(f"{file} can't be indexed: ")


@pytest.mark.parametrize(
    "label", [b"dog", b"1_0", b"2e9", b"1e23", b"2000000000", b"9" * 23, "\uff11".encode(), b"3.0", b"+1", b"1000000"]
)
def test_a_class_is_a_plain_number_of_a_possible_size(tmp_path: Path, label: bytes) -> None:
    tar(file := tmp_path / "0.tar", [("a.png", b"x"), ("a.cls", label)])
    with pytest.raises(NotShardedData) as caught:
        read_tar(file, "0.tar")
    assert f"the class in a.cls is {label!r}; expected a number from 0 to 999999" in str(caught.value)
    tar(file, [("a.png", b"x"), ("a.cls", b" 12\n")])
    assert read_tar(file, "0.tar")[0]["label"].tolist() == [12]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data, at: data[: at + 200], "is cut off at byte 10,440: the tar file's end mark is missing"),
        (lambda data, at: data[:at], "is cut off at byte 10,240: the tar file's end mark is missing"),
        (lambda data, at: data[: 8 * 4 * BLOCK], "is cut off at byte 16,384: the tar file's end mark is missing"),
        (lambda data, at: data[: at + 148] + b"wrong" + data[at + 153 :], "is damaged at byte 10,240"),
        (lambda data, at: data[:at] + bytes(BLOCK) + data[at + BLOCK :], "is damaged at byte 10,240"),
        (lambda data, at: data + data, "is damaged at byte 16,384, or several tar files are joined"),
    ],
)
def test_images_behind_a_damage_are_not_lost_silently(
    tmp_path: Path, damage: Callable[[bytes, int], bytes], problem: str
) -> None:
    write_tar(file := tmp_path / "0.tar", [Item(b"\xff\xd8 image", 0, number) for number in range(8)])
    data = file.read_bytes()
    assert len(read_tar(file, "0.tar")[0]) == 8
    file.write_bytes(damage(data, 5 * 4 * BLOCK))  # after five images with their classes
    with pytest.raises(NotShardedData) as caught:
        read_tar(file, "0.tar")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (tarfile.LNKTYPE, "is a link, sparse or no file; pack it again"),
        (tarfile.SYMTYPE, "is a link"),
        (tarfile.FIFOTYPE, "is a link, sparse or no file"),
    ],
)
def test_a_member_without_bytes_of_its_own_is_named(tmp_path: Path, kind: bytes, problem: str) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as opened:
        for name, data in (("a.png", b"x"), ("a.cls", b"0"), ("b.cls", b"0")):
            (member := tarfile.TarInfo(name)).size = len(data)
            opened.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = kind, "a.png"
        opened.addfile(link)
    with pytest.raises(NotShardedData, match=rf"its member b\.png {problem}"):
        read_tar(tmp_path / "0.tar", "0.tar")


def test_a_sparse_or_huge_member_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = tarfile.TarInfo("a.png")
    member.pax_headers = {
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "a.png",
        "GNU.sparse.size": "5000000000", "GNU.sparse.map": "0,0,5000000000,0",
    }  # fmt: skip
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as opened:
        opened.addfile(member)
    with pytest.raises(NotShardedData, match=r"its member a\.png is a link, sparse or no file"):
        read_tar(tmp_path / "0.tar", "0.tar")
    monkeypatch.setattr("vitlab.data.packing.shard_writer.MAX_IMAGE_BYTES", 3)
    tar(tmp_path / "0.tar", [("a.png", b"1234"), ("a.cls", b"0")])
    with pytest.raises(NotShardedData, match=r"its member a\.png has 4 bytes; at most 3 are read"):
        read_tar(tmp_path / "0.tar", "0.tar")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (file := tmp_path / "0.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(NotShardedData, match=r"0\.tar can't be indexed"):
        read_tar(file, "0.tar")
