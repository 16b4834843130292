"""What a packed set says of itself, and every way in which it can't be believed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pictures import Packed
from vitlab.data import indexing, manifest
from vitlab.data.manifest import NotPrepared, faults, read
from vitlab.data.sets.shards import shards as load_shards
from vitlab.data.storage import Storage


@pytest.fixture
def copy(packed: Packed, tmp_path: Path) -> Path:
    """A packed set that may be damaged."""
    return Path(shutil.copytree(packed(), tmp_path / "copy"))


def test_it_counts_images_by_split_and_class_and_names_every_shard_with_its_checksum(packed: Packed) -> None:
    content = read(Storage(str(packed())))
    assert {name: split["images"] for name, split in content["splits"].items()} == {"train": 74, "test": 20}
    assert list(content["splits"]["train"]["classes"]) == content["classes"] == ["digit 0", "digit 1", "digit 2"]
    assert sum(content["splits"]["train"]["classes"].values()) == 74
    shards = content["splits"]["train"]["shards"]
    assert [shard["images"] for shard in shards] == [15, 15, 15, 15, 14], "no shard has a tiny rest"
    assert all(manifest.digest(packed() / shard["file"]) == shard["sha256"] for shard in shards)
    assert content["plan"]["quality"] == 90
    assert list(faults(packed(), content, whole=True)) == []


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "found", "at_a_glance"),
    [
        (lambda root: (root / "train" / "chunk-0-1.bin").unlink(), "train/chunk-0-1.bin: it is missing", True),
        (lambda root: (root / "test" / "chunk-0-0.bin").write_bytes(b"x"), "0.bin: it has 1 bytes instead of", True),
        (lambda root: flip(root / "train" / "chunk-0-0.bin"), "train/chunk-0-0.bin: its checksum is wrong", False),
        (lambda root: flip(root / "train.index.npy"), "train.index.npy: its checksum is wrong", False),
    ],
)
def test_a_file_that_was_changed_is_named(
    copy: Path, damage: Callable[[Path], None], found: str, at_a_glance: bool
) -> None:
    damage(copy)
    content = read(Storage(str(copy)))
    assert [found in line for line in faults(copy, content, whole=True)] == [True]
    assert any(found in line for line in faults(copy, content, whole=False)) == at_a_glance


def test_images_in_folders_are_compared_too(packed: Packed, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packed("folder"), tmp_path / "copy"))
    content = json.loads((copy / manifest.NAME).read_text())
    assert list(faults(copy, content, whole=True)) == []
    flip(next((copy / "test").rglob("*.png")))
    assert "checksum is wrong" in " ".join(faults(copy, content, whole=True))
    next((copy / "train").rglob("*.jpg")).unlink()
    assert "it is missing" in " ".join(faults(copy, content, whole=False))


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "is no packed data set (it has no prepared.json): it is empty; `python src/prepare.py data=image_folder"),
        ({"cats/1.jpg": "x"}, "-packed` packs images that lie there, and data=image_folder reads them as they are"),
        ({"train/0.tar": "x"}, "of a WebDataset from elsewhere, `python src/prepare.py index="),
        ({"train/index.json": "{}"}, "of LitData's, those that src/prepare.py packed are read"),
        ({".prepare/plan.json": "{}"}, "packing it was cut off; the same command of src/prepare.py goes on"),
        ({"prepared.json": "{"}, "prepared.json is damaged"),
        ({"prepared.json": '{"vitlab": 2}'}, "is of version 2, and this vitlab reads version 1"),
        (
            {"prepared.json": '{"vitlab": 1, "format": "folder"}'},
            "holds folders of images, no shards; use data=image_f",
        ),
    ],
)
def test_what_is_no_packed_set_is_refused_with_what_to_do(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(NotPrepared) as caught:
        read(Storage(str(tmp_path)))
    assert problem in str(caught.value)


def test_a_damaged_index_is_refused_before_it_is_believed(copy: Path) -> None:
    content = read(Storage(str(copy)))
    flip(copy / "train.index.npy")
    with pytest.raises(NotPrepared, match=r"train\.index\.npy can't be used \(its checksum is wrong\)"):
        manifest.table(Storage(str(copy)), content, "train")
    (copy / "train.index.npy").write_bytes((copy / "test.index.npy").read_bytes())
    with pytest.raises(NotPrepared, match="it is of another data set"):
        manifest.table(Storage(str(copy)), content, "train")


@pytest.mark.parametrize(
    "name", ["/{0}/x.tar", "../x.tar", "train/../../x.bin", "a/b/x.bin", "train/x.pth", "", None, "..\\\\x.tar"]
)
def test_a_shard_named_as_packing_names_none_is_refused_and_written_nowhere(
    copy: Path, tmp_path: Path, name: str | None
) -> None:
    content = json.loads((copy / manifest.NAME).read_text())
    outside = name and name.format(tmp_path)
    content["splits"]["test"]["shards"][0]["file"] = outside
    (copy / manifest.NAME).write_text(json.dumps(content))
    (tmp_path / "x.tar").write_text("mine")
    for place in (str(copy), f"local:{copy}"):
        with pytest.raises(NotPrepared) as caught:
            load_shards(data_dir=place, cache_dir=str(tmp_path / "cache"))
        assert f"data_dir={place}: prepared.json names a shard {outside!r} in test" in str(caught.value)
    with pytest.raises(NotPrepared, match="names a shard"):
        indexing.verify(copy)
    assert (tmp_path / "x.tar").read_text() == "mine"


@pytest.mark.parametrize("name", ["../x", "/x", "held"])
def test_a_split_of_another_name_is_refused(copy: Path, name: str) -> None:
    content = json.loads((copy / manifest.NAME).read_text())
    content["splits"][name] = content["splits"].pop("test")
    (copy / manifest.NAME).write_text(json.dumps(content))
    with pytest.raises(NotPrepared, match=f"prepared.json names a split '{name}', and there are train, val, test"):
        read(Storage(str(copy)))
