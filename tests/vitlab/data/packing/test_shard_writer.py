"""A shard as WebDataset itself reads it, and what the index says about it."""

import gc
import logging
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from webdataset import WebDataset

import image_fixtures
from image_fixtures import SETTINGS, Members, Packed, source, tar
from vitlab.data.decode import read_bytes
from vitlab.data.packing import pack, shard_writer
from vitlab.data.packing.manifest import NotShardedData
from vitlab.data.packing.shard_writer import Item, image_suffix, packing_order, read_tar, write_tar
from vitlab.data.packing.verify import verify
from vitlab.data.sets.digits import digits
from vitlab.data.sets.huggingface import huggingface
from vitlab.data.sets.shards import shards
from vitlab.data.source import Split
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


@pytest.fixture
def images(drawn: Path, tmp_path: Path) -> Path:
    """Pictures that may be changed, with the times of the others."""
    return Path(shutil.copytree(drawn, tmp_path / "images"))


def change(file: Path, kind: str = "png") -> None:
    """Another picture under the same name, which may be of another format than its suffix says."""
    Image.new("RGB", (30, 40), (200, 10, 10)).save(file, kind)


def test_a_set_whose_images_were_changed_is_not_what_the_command_makes(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = image_fixtures.pack(images, tmp_path / "out")
    before = image_fixtures.content(out)
    with caplog.at_level(logging.INFO):
        image_fixtures.pack(images, out)
    assert "exists already and is what this command makes" in caplog.text
    change(images / "train" / "digit 0" / "0.png")
    with pytest.raises(ValueError, match=r"out=.*out was packed from images of which files have other sizes or times"):
        image_fixtures.pack(images, out)
    assert image_fixtures.content(out) == before


def test_a_resumed_packing_writes_again_what_was_changed_and_nothing_else(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out, source = tmp_path / "out", image_fixtures.source(images)

    def full(file: Path, items: Any) -> None:
        if file.stem.endswith("-3"):
            raise OSError("No space left on device")
        write_tar(file, items)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "write_tar", full)
        with pytest.raises(OSError, match="No space left"):
            image_fixtures.pack(images, out)
    made = {file: file.stat().st_mtime_ns for file in (out / "train").rglob("*.*")}
    order = shard_writer.packing_order(source, image_fixtures.SETTINGS)["train"].tolist()
    changed = next(file for row in order[:15] if (file := (source.train.files or [])[row]).endswith(".jpg"))
    change(Path(changed))
    image_fixtures.pack(images, out)
    assert "1 shards are written again: files of their images have other sizes or times now" in caplog.text
    again = {file for file in made if not file.exists() or file.stat().st_mtime_ns != made[file]}
    assert len(again) == 1
    assert image_fixtures.content(out) == image_fixtures.content(image_fixtures.pack(images, tmp_path / "another"))
    verify(out)


def test_training_and_what_a_set_says_of_itself_don_t_depend_on_times(
    images: Path, packed: Packed, tmp_path: Path
) -> None:
    before = image_fixtures.source(images)
    for file in images.rglob("*.*"):
        os.utime(file, (1, 1))
    after = image_fixtures.source(images)
    assert {name: split.digest() for name, split in before.splits.items()} == {
        name: split.digest() for name, split in after.splits.items()
    }
    out = image_fixtures.content(image_fixtures.pack(images, tmp_path / "out"))
    known = image_fixtures.content(packed())
    assert out.pop(pack.STAMPS) != known.pop(pack.STAMPS)
    assert out == known


def test_each_image_has_the_size_and_time_of_its_file_and_what_is_gone_a_stamp_of_its_own(tmp_path: Path) -> None:
    (file := tmp_path / "a.jpg").write_bytes(b"12345")
    os.utime(file, ns=(7, 8))
    split = Split(None, torch.zeros(2, dtype=torch.long), [str(file), str(tmp_path / "gone")])
    assert shard_writer.sizes_and_mtimes(split).tolist() == [[5, 8], [-1, 2]]
    assert shard_writer.sizes_and_mtimes(digits().test).tolist() == [[0, 0]] * 360


def test_rows_have_the_stamps_of_the_files_that_contain_them(images: Path, tmp_path: Path) -> None:
    files = sorted(map(str, (images / "train" / "digit 0").glob("*.png")))[:4]
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    linked = datasets.Dataset.from_dict({"image": files, "label": [0, 1, 0, 1]}, features=kinds)
    datasets.DatasetDict(train=linked, test=linked).save_to_disk(tmp_path / "saved")
    given: Any = {"cache_dir": str(tmp_path / "cache")}
    train = huggingface(name=str(tmp_path / "saved"), **given).train.subset(torch.tensor([2, 0]))
    assert shard_writer.sizes_and_mtimes(train).tolist() == [[0, 0]] * 2, "save_to_disk takes the images in"
    (tmp_path / "parquet").mkdir()
    for split in ("train", "test"):
        linked.to_parquet(tmp_path / "parquet" / f"{split}.parquet")
    streamed = huggingface(name=str(tmp_path / "parquet"), streaming=True, **given).train
    state = (tmp_path / "parquet" / "train.parquet").stat()
    assert shard_writer.sizes_and_mtimes(streamed).tolist() == [[state.st_size, state.st_mtime_ns]] * 4
    listed = huggingface(name=str(images), **given).train
    assert read_bytes((listed.files or [])[3]) == Path((listed.files.local_files() or [])[3]).read_bytes()  # type: ignore
    assert (shard_writer.sizes_and_mtimes(listed)[:, 0] > 0).all()
