"""What a packed set says of itself, and every way in which it can't be believed."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from image_fixtures import Packed
from vitlab.data.decode import read_bytes
from vitlab.data.packing.manifest import (
    NAME,
    NotShardedData,
    check_files,
    load_index,
    read_manifest,
)
from vitlab.data.packing.pack import verify
from vitlab.data.sets.shards import shards as load_shards
from vitlab.storage.atomic import file_sha256
from vitlab.storage.remote import Storage


@pytest.fixture
def copy(packed: Packed, tmp_path: Path) -> Path:
    """A packed set that may be damaged."""
    return Path(shutil.copytree(packed(), tmp_path / "copy"))


def test_it_counts_images_by_split_and_class_and_names_every_shard_with_its_checksum(packed: Packed) -> None:
    content = read_manifest(Storage(str(packed())))
    assert {name: split["images"] for name, split in content["splits"].items()} == {"train": 74, "test": 20}
    assert list(content["splits"]["train"]["classes"]) == content["classes"] == ["digit 0", "digit 1", "digit 2"]
    assert sum(content["splits"]["train"]["classes"].values()) == 74
    shards = content["splits"]["train"]["shards"]
    assert [shard["images"] for shard in shards] == [15, 15, 15, 15, 14], "no shard has a tiny rest"
    assert all(file_sha256(packed() / shard["file"]) == shard["sha256"] for shard in shards)
    assert content["plan"]["quality"] == 90
    check_files(packed(), content, checksums=True)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "found", "at_a_glance"),
    [
        (lambda root: (root / "train" / "000001.tar").unlink(), "train/000001.tar: it is missing", True),
        (lambda root: (root / "test" / "000000.tar").write_bytes(b"x"), "0.tar: it has 1 bytes instead of", True),
        (lambda root: flip(root / "train" / "000000.tar"), "train/000000.tar: its checksum is wrong", False),
        (lambda root: flip(root / "train.index.npy"), "train.index.npy: its checksum is wrong", False),
    ],
)
def test_a_file_that_was_changed_is_named(
    copy: Path, damage: Callable[[Path], None], found: str, at_a_glance: bool
) -> None:
    damage(copy)
    content = read_manifest(Storage(str(copy)))
    with pytest.raises(NotShardedData, match=found) as caught:
        check_files(copy, content, checksums=True)
    assert str(caught.value).count("\n  - ") == 1
    with pytest.raises(NotShardedData, match=found) if at_a_glance else nullcontext():
        check_files(copy, content, checksums=False)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"cats/1.jpg": "x"}, "-packed` packs images of that folder, and data=image_folder reads them as they are"),
        ({"train/0.tar": "x"}, "; `python src/prepare.py data=huggingface data.name="),
        ({".prepare/plan.json": "{}"}, "packing it was interrupted; the same command of src/prepare.py resumes it"),
        ({"prepared.json": "{"}, "prepared.json is damaged"),
        ({"prepared.json": '{"vitlab": 2}'}, "has version 2, and this vitlab reads version 1"),
    ],
)
def test_what_is_no_packed_set_is_refused_with_what_to_do(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(NotShardedData) as caught:
        read_manifest(Storage(str(tmp_path)))
    assert problem in str(caught.value)


def test_a_damaged_index_is_refused_before_it_is_believed(copy: Path) -> None:
    content = read_manifest(Storage(str(copy)))
    flip(copy / "train.index.npy")
    with pytest.raises(NotShardedData, match=r"train\.index\.npy can't be used \(its checksum is wrong\)"):
        load_index(Storage(str(copy)), content, "train")
    (copy / "train.index.npy").write_bytes((copy / "test.index.npy").read_bytes())
    with pytest.raises(NotShardedData, match="it is of another data set"):
        load_index(Storage(str(copy)), content, "train")


@pytest.mark.parametrize(
    "name", ["/{0}/x.tar", "../x.tar", "train/../../x.bin", "a/b/x.bin", "train/x.pth", "", None, "..\\\\x.tar"]
)
def test_a_shard_named_as_packing_names_none_is_refused_and_written_nowhere(
    copy: Path, tmp_path: Path, name: str | None
) -> None:
    content = json.loads((copy / NAME).read_text())
    outside = name and name.format(tmp_path)
    content["splits"]["test"]["shards"][0]["file"] = outside
    (copy / NAME).write_text(json.dumps(content))
    (tmp_path / "x.tar").write_text("mine")
    for place in (str(copy), f"file://{copy}"):
        with pytest.raises(NotShardedData) as caught:
            load_shards(data_dir=place, cache_dir=str(tmp_path / "cache"))
        assert f"data_dir={place}: prepared.json names a shard {outside!r} in test" in str(caught.value)
    with pytest.raises(NotShardedData, match="names a shard"):
        verify(copy)
    assert (tmp_path / "x.tar").read_text() == "mine"


@pytest.mark.parametrize("name", ["../x", "/x", "held"])
def test_a_split_of_another_name_is_refused(copy: Path, name: str) -> None:
    content = json.loads((copy / NAME).read_text())
    content["splits"][name] = content["splits"].pop("test")
    (copy / NAME).write_text(json.dumps(content))
    with pytest.raises(NotShardedData, match=f"prepared.json names a split '{name}', and there are train, val, test"):
        read_manifest(Storage(str(copy)))


def test_a_set_packed_when_shards_had_another_format_is_still_read(copy: Path) -> None:
    """An index finds images in any file; only their names differed by format."""
    before = [read_bytes(file) for file in load_shards(data_dir=str(copy)).train.files or []]
    for file in copy.rglob("*.tar"):
        file.rename(file.with_suffix(".bin"))
    (file := copy / NAME).write_text(file.read_text().replace(".tar", ".bin"))
    assert [read_bytes(file) for file in load_shards(data_dir=str(copy)).train.files or []] == before
