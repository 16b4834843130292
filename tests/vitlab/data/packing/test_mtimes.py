"""Images that were changed under the same names are packed anew, and a set of what they were isn't taken for theirs."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

import image_fixtures
from vitlab.data.decode import read_bytes
from vitlab.data.packing import mtimes, shard_writer
from vitlab.data.packing.tar import write_tar
from vitlab.data.packing.verify import verify
from vitlab.data.sets.digits import digits
from vitlab.data.sets.huggingface import huggingface
from vitlab.data.source import Split

Packed = Any


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
    assert "is there already, and is what this command makes" in caplog.text
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
    assert out.pop(mtimes.NAME) != known.pop(mtimes.NAME)
    assert out == known


def test_each_image_has_the_size_and_time_of_its_file_and_what_is_gone_a_stamp_of_its_own(tmp_path: Path) -> None:
    (file := tmp_path / "a.jpg").write_bytes(b"12345")
    os.utime(file, ns=(7, 8))
    split = Split(None, torch.zeros(2, dtype=torch.long), [str(file), str(tmp_path / "gone")])
    assert mtimes.sizes_and_mtimes(split).tolist() == [[5, 8], [-1, 2]]
    assert mtimes.sizes_and_mtimes(digits().test).tolist() == [[0, 0]] * 360


def test_rows_have_the_stamps_of_the_files_that_they_lie_in(images: Path, tmp_path: Path) -> None:
    files = sorted(map(str, (images / "train" / "digit 0").glob("*.png")))[:4]
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    beside = datasets.Dataset.from_dict({"image": files, "label": [0, 1, 0, 1]}, features=kinds)
    datasets.DatasetDict(train=beside, test=beside).save_to_disk(tmp_path / "saved")
    given: Any = {"cache_dir": str(tmp_path / "cache")}
    train = huggingface(name=str(tmp_path / "saved"), **given).train.subset(torch.tensor([2, 0]))
    assert mtimes.sizes_and_mtimes(train).tolist() == [[0, 0]] * 2, "save_to_disk takes the images in"
    (tmp_path / "parquet").mkdir()
    for split in ("train", "test"):
        beside.to_parquet(tmp_path / "parquet" / f"{split}.parquet")
    streamed = huggingface(name=str(tmp_path / "parquet"), streaming=True, **given).train
    state = (tmp_path / "parquet" / "train.parquet").stat()
    assert mtimes.sizes_and_mtimes(streamed).tolist() == [[state.st_size, state.st_mtime_ns]] * 4
    listed = huggingface(name=str(images), **given).train
    assert read_bytes((listed.files or [])[3]) == Path((listed.files.local_files() or [])[3]).read_bytes()  # type: ignore
    assert (mtimes.sizes_and_mtimes(listed)[:, 0] > 0).all()
