"""Packing resumes where it was interrupted, to the same bytes, and leaves nothing that looks complete and isn't."""

import errno
import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from PIL import Image

import image_fixtures
from vitlab.data.decode import UnreadableImage, read_bytes, read_image
from vitlab.data.file_list import FileList
from vitlab.data.packing import pack, shard_writer
from vitlab.data.packing.manifest import NAME, WORK, NotShardedData
from vitlab.data.packing.shard_writer import Settings, write_tar
from vitlab.data.sets.digits import digits
from vitlab.data.sets.shards import shards
from vitlab.data.source import Source, Split
from vitlab.storage.remote import Storage

Packed = Callable[..., Path]


class Killed(BaseException):
    """What nothing catches."""


def test_interrupted_in_a_shard_and_resumed_it_ends_in_the_same_bytes(
    drawn: Path, packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []
    out = tmp_path / "out"

    def killed_in_the_fourth(file: Path, items: Any) -> Any:
        begun.append(file)
        if len(begun) == 4:
            file.write_bytes(b"half of it")
            raise Killed
        return write_tar(file, items)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "write_tar", killed_in_the_fourth)
        with pytest.raises(Killed):
            image_fixtures.pack(drawn, out)
    assert not (out / NAME).exists()
    kept = {f: f.stat().st_mtime_ns for f in (out / "train").iterdir()}
    assert kept
    begun[3].write_bytes(b"half of it")  # as a killed process leaves it
    (out / ".prepared.json.99").touch()
    image_fixtures.pack(drawn, out)
    assert not (out / ".prepared.json.99").exists()
    assert image_fixtures.content(out) == image_fixtures.content(packed())
    assert {f: f.stat().st_mtime_ns for f in kept} == kept, "complete shards are not written again"


def test_processes_make_the_same_bytes(drawn: Path, packed: Packed, tmp_path: Path) -> None:
    pack.pack(image_fixtures.source(drawn), image_fixtures.SETTINGS, tmp_path / "out", name="pictures", processes=2)
    assert image_fixtures.content(tmp_path / "out") == image_fixtures.content(packed())


@pytest.mark.parametrize("processes", [0, 1])
def test_a_machine_that_can_t_read_ends_the_packing_and_no_image_is_left_out(
    drawn: Path, packed: Packed, tmp_path: Path, processes: int
) -> None:
    disk, out, source = tmp_path / "disk", tmp_path / "out", image_fixtures.source(drawn)
    gone = [file.replace(str(drawn), str(disk)) for file in source.train.files or []]
    unplugged = replace(source, train=Split(None, source.train.labels, FileList(gone)))
    given: Any = {"name": "pictures", "on_error": "skip", "max_skipped": 1.0, "processes": processes}
    with pytest.raises(UnreadableImage) as caught:
        pack.pack(unplugged, image_fixtures.SETTINGS, out, **given)
    assert re.fullmatch(
        rf"{disk}/train/.*g can't be read \(No such file or directory\)\. The image may be intact, so it is not "
        r"skipped; repair that, and the same command resumes",
        str(caught.value),
    )
    disk.symlink_to(drawn)
    pack.pack(unplugged, image_fixtures.SETTINGS, out, **given)
    assert image_fixtures.content(out) == image_fixtures.content(packed())


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error"), OSError("HTTP 503")])
def test_what_a_row_s_storage_says_is_no_fault_of_the_image(
    error: Exception, packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any, **others: Any) -> int:
        raise error

    source = shards(data_dir=str(packed()))
    monkeypatch.setattr(Storage, "open", failing)
    with pytest.raises(UnreadableImage, match=r"packed/train/\d+ can't be read .* may be intact"):
        pack.pack(
            source, image_fixtures.SETTINGS, tmp_path / "out", name="x", on_error="skip", max_skipped=1, processes=0
        )


def test_a_set_that_is_there_is_left_as_it_is_and_another_is_refused(drawn: Path, packed: Packed) -> None:
    before = image_fixtures.content(packed())
    image_fixtures.pack(drawn, packed())
    assert image_fixtures.content(packed()) == before
    with pytest.raises(ValueError, match=r"was packed with other settings \(size: 24 there, 30 now\); use those"):
        image_fixtures.pack(drawn, packed(), size=30)


def test_what_was_begun_otherwise_or_is_somebody_else_s_or_in_use_is_refused(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work := tmp_path / "begun" / WORK).mkdir(parents=True)
    plan = pack.packing_plan(image_fixtures.source(drawn), image_fixtures.SETTINGS)
    (work / "plan.json").write_text(json.dumps({"plan": {**plan, "quality": 50}}))
    with pytest.raises(ValueError, match=r"was packed with other settings \(quality: 50 there, 90 now\)"):
        image_fixtures.pack(drawn, tmp_path / "begun")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("you")
    with pytest.raises(ValueError, match=r"holds something else \(dear\.txt\); name a new or empty folder"):
        image_fixtures.pack(drawn, tmp_path / "letters")
    monkeypatch.setattr(pack, "LOCK_TIMEOUT", 0)
    (tmp_path / "used").mkdir()
    with FileLock(tmp_path / "used" / pack.LOCK), pytest.raises(ValueError, match="being packed by another process"):
        image_fixtures.pack(drawn, tmp_path / "used")


def test_a_set_in_memory_is_packed_without_loss_and_read_as_colors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    complete = digits()
    few = Source("few", complete.classes, 1, (0.3,), (0.4,), 8, complete.train.subset(torch.arange(60)), complete.test)
    with caplog.at_level(logging.INFO):
        found = pack.pack(few, Settings(None, 90, 100, False, 0), tmp_path / "out", name="few", processes=0)
    assert found["train/images"] == 60
    assert "test          360" in caplog.text
    read = shards(data_dir=str(tmp_path / "out"))
    assert (read.channels, read.mean, read.classes) == (3, (0.3, 0.3, 0.3), complete.classes)
    assert few.train.images is not None
    assert read.train.files is not None
    for number in range(60):
        assert torch.equal(read_image(read.train.files[number]), few.train.images[number].expand(3, -1, -1))


def test_shards_are_a_data_set_to_be_packed_otherwise(packed: Packed, tmp_path: Path) -> None:
    first = shards(data_dir=str(packed()))
    pack.pack(first, replace(image_fixtures.SETTINGS, shard_images=9), tmp_path / "out", name="again", processes=0)
    second = shards(data_dir=str(tmp_path / "out"))
    for name in ("train", "test"):
        one, two = (
            sorted(
                (read_bytes(file), label) for file, label in zip(split.files or [], split.labels.tolist(), strict=True)
            )
            for split in (first.splits[name], second.splits[name])
        )
        assert one == two


SKIP: Any = {"on_error": "skip", "max_skipped": 0.9}


@pytest.fixture
def broken(drawn: Path, tmp_path: Path) -> Path:
    """Pictures of which two can't be decoded."""
    for file in drawn.rglob("*.*"):
        copy = tmp_path / "broken" / file.relative_to(drawn)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    for name in ("train/digit 0/0.png", "val/digit 0/72.png"):
        file = next(iter(sorted((tmp_path / "broken" / name).parent.glob("*.png"))))
        file.write_bytes(file.read_bytes()[:60])
    return tmp_path / "broken"


def test_broken_images_are_all_named_then_left_out_and_listed_or_replaced(broken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given: Any = {"name": "broken", "processes": 0}
    with pytest.raises(
        ValueError,
        match=r"2 of 94 images .* can't be decoded.* Replace them, or skip them with data\.on_error=skip, and",
    ) as caught:
        pack.pack(image_fixtures.source(broken), image_fixtures.SETTINGS, out, **given)
    assert str(caught.value).count("\n  - ") == 2
    assert "it is truncated: the end of the PNG file is missing" in str(caught.value)
    assert not (out / "prepared.json").exists()
    with pytest.raises(ValueError, match=r"\(2\.13%\) can\'t be decoded.* more than data\.max_skipped=0\.01 allows"):
        pack.pack(image_fixtures.source(broken), image_fixtures.SETTINGS, out, on_error="skip", **given)
    found = pack.pack(
        image_fixtures.source(broken), image_fixtures.SETTINGS, out, on_error="skip", max_skipped=2 / 94, **given
    )
    assert (found["broken"], found["train/images"], found["test/images"]) == (2, 73, 19)
    rows = (out / pack.BROKEN).read_text().splitlines()
    assert rows[0] == "path,split,reason"
    assert [row.split(",")[1] for row in rows[1:]] == ["train", "test"]
    assert len(shards(data_dir=str(out)).train) == 73


def test_replaced_images_are_packed_by_the_same_command(
    broken: Path, drawn: Path, packed: Packed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="can't be decoded"):
        image_fixtures.pack(broken, out)
    for file in drawn.rglob("*.*"):
        (broken / file.relative_to(drawn)).write_bytes(file.read_bytes())
    image_fixtures.pack(broken, out)
    assert image_fixtures.content(out) == image_fixtures.content(packed()), "wherever the folder is"


def test_a_class_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (9, 9), (number * 20, 9, 9)).save(tmp_path / "in" / name / f"{number}.png")
    for file in (tmp_path / "in" / "b").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match="no image of the class 'b' in train can be decoded"):
        pack.pack(
            image_fixtures.source(tmp_path / "in"),
            image_fixtures.SETTINGS,
            tmp_path / "out",
            **SKIP,
            name="x",
            processes=0,
        )


def test_verifying_names_every_file_that_isn_t_what_was_packed(packed: Callable[..., Path], tmp_path: Path) -> None:
    assert pack.verify(packed())["train/images"] == 74
    copy = Path(shutil.copytree(packed(), tmp_path / "copy"))
    (copy / "train" / "000002.tar").unlink()
    data = (copy / "test" / "000000.tar").read_bytes()
    (copy / "test" / "000000.tar").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(NotShardedData, match="isn't what was packed; copy it again") as caught:
        pack.verify(copy)
    assert "train/000002.tar: it is missing" in str(caught.value)
    assert "test/000000.tar: its checksum is wrong" in str(caught.value)
