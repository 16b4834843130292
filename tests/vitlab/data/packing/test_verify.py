"""A WebDataset from elsewhere becomes readable, and a packed set is compared with what was packed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from image_fixtures import tar
from vitlab.data.packing.manifest import NotShardedData
from vitlab.data.packing.verify import index, verify
from vitlab.data.sets.shards import shards


@pytest.fixture
def foreign(drawn: Path, tmp_path: Path) -> Path:
    """Tar files as others write them: a class next to or before each image, other members between, folders in names."""
    files = sorted(drawn.rglob("*.png"))[:24]
    members = [
        part
        for number, file in enumerate(files)
        for part in (
            (f"some/{number:04d}.cls", str(number % 3).encode()),
            (f"some/{number:04d}.json", b"{}"),
            (f"some/{number:04d}.png", file.read_bytes()),
        )
    ]
    for part in range(2):
        tar(tmp_path / "theirs" / "train" / f"imagenet-{part}.tar", members[36 * part : 36 * part + 36])
    tar(tmp_path / "theirs" / "val" / "0.tar", members[:18])
    return tmp_path / "theirs"


def test_its_images_are_read_in_place_with_their_classes(foreign: Path, drawn: Path) -> None:
    before = {file: file.read_bytes() for file in foreign.glob("*/*.tar")}
    found = index(foreign)
    assert (found["train/images"], found["test/images"], found["train/shards"]) == (24, 6, 2)
    source = shards(data_dir=str(foreign))
    assert (source.name, source.classes) == ("theirs", ("0", "1", "2"))
    images = [file.read_bytes() for file in sorted(drawn.rglob("*.png"))[:24]]
    assert [file.read() for file in source.train.files or []] == images  # type: ignore[attr-defined]
    assert source.train.labels.tolist() == [number % 3 for number in range(24)]
    assert {file: file.read_bytes() for file in before} == before
    assert verify(foreign)["test/images"] == 6


def test_classes_have_the_names_in_classes_txt(foreign: Path) -> None:
    (foreign / "classes.txt").write_text("ant\nbee\ncat\ndog\n")
    index(foreign)
    assert shards(data_dir=str(foreign)).classes == ("ant", "bee", "cat", "dog")


def test_too_few_names_are_refused(foreign: Path) -> None:
    (foreign / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(NotShardedData, match="names 2 classes, and the labels go up to 2"):
        index(foreign)


def test_verifying_names_every_file_that_isn_t_what_was_packed(packed: Callable[..., Path], tmp_path: Path) -> None:
    assert verify(packed())["train/images"] == 74
    copy = Path(shutil.copytree(packed(), tmp_path / "copy"))
    (copy / "train" / "000002.tar").unlink()
    data = (copy / "test" / "000000.tar").read_bytes()
    (copy / "test" / "000000.tar").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(NotShardedData, match="isn't what was packed; copy it again") as caught:
        verify(copy)
    assert "train/000002.tar: it is missing" in str(caught.value)
    assert "test/000000.tar: its checksum is wrong" in str(caught.value)
