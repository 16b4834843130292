"""Checkpoint files are written atomically, and the newest intact one is found."""

import os
import random
import re
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from vitlab.storage import safe_load
from vitlab.training import checkpoint_files

# --------------------------------------------------------------------------------------------------------- on the disk


def saved(folder: Path, **content: Any) -> Path:
    file = folder / "last.ckpt"
    checkpoint_files.AtomicFiles().save_checkpoint({"global_step": 1, "weights": torch.arange(5000.0), **content}, file)
    return file


def test_a_whole_file_is_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    assert safe_load.corruption(saved(tmp_path)) is None
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        saved(tmp_path, global_step=step)
    assert safe_load.load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 3
    assert safe_load.load_checkpoint(tmp_path / "previous.ckpt")["global_step"] == 2


def test_any_damage_is_reported_or_harmless(tmp_path: Path) -> None:
    file = saved(tmp_path)
    content = file.read_bytes()
    draw = random.Random(0)
    reported = 0
    for _ in range(400):
        damaged = bytearray(content)
        if draw.random() < 0.5:
            damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        else:
            damaged = damaged[: draw.randrange(len(content))]
        file.write_bytes(damaged)
        if safe_load.corruption(file):
            reported += 1
        else:
            found = safe_load.load_checkpoint(file)
            assert found["global_step"] == 1
            assert torch.equal(found["weights"], torch.arange(5000.0))
    assert reported > 350


def test_a_full_disk_leaves_the_former_file_and_is_reported(tmp_path: Path) -> None:
    file = saved(tmp_path)
    content = file.read_bytes()
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))  # stands for the free space
    try:
        with pytest.raises(OSError, match="can't be written") as error:
            checkpoint_files.AtomicFiles().save_checkpoint({"weights": torch.zeros(10**5)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(error.value).startswith(f"{file} can't be written")
    free = shutil.disk_usage(tmp_path).free / 2**20
    said = re.search(r"; ([\d,]+) MiB are free there. The previous checkpoint is intact", str(error.value))
    assert said is not None
    assert int(said[1].replace(",", "")) == pytest.approx(free, rel=0.2)
    assert file.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_newest_is_found_by_its_steps_and_not_by_its_date(tmp_path: Path) -> None:
    for name, step in (("best", 7), ("step-000004", 4), ("last", 9)):
        checkpoint_files.AtomicFiles().save_checkpoint({"global_step": step}, tmp_path / f"{name}.ckpt")
    os.utime(tmp_path / "last.ckpt", (1, 1))
    assert checkpoint_files.newest_checkpoint(tmp_path) == (tmp_path / "last.ckpt", {})
    (tmp_path / "last.ckpt").write_bytes(b"PK")
    found, damaged = checkpoint_files.newest_checkpoint(tmp_path)
    assert found == tmp_path / "best.ckpt"
    assert list(damaged) == [tmp_path / "last.ckpt"]


def test_every_file_that_cannot_be_loaded_or_has_no_steps_is_reported(tmp_path: Path) -> None:
    saved(tmp_path).rename(tmp_path / "best.ckpt")
    (tmp_path / "step-000002.ckpt").write_bytes(b"PK")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "step-000003.ckpt")
    (tmp_path / ".best.ckpt").write_bytes(b"PK")  # of a save that was killed
    newest, damaged = checkpoint_files.newest_checkpoint(tmp_path)
    assert newest == tmp_path / "best.ckpt"
    assert sorted(file.name for file in damaged) == ["step-000002.ckpt", "step-000003.ckpt"]
    assert damaged[tmp_path / "step-000003.ckpt"] == "KeyError: 'global_step'"


def test_the_folder_is_made_and_file_then_folder_reach_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(checkpoint_files, "fsync", lambda path: synced.append(path.name))
    folder = tmp_path / "run" / "checkpoints"
    for names in ([], ["last.ckpt"]):
        synced.clear()
        saved(folder, names=names)
        assert len(synced) == 2
        assert synced[0].endswith("tmp")
        assert synced[1] == "checkpoints"


def test_without_links_a_second_name_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    file = saved(tmp_path)
    monkeypatch.setattr(os, "link", refuse)
    checkpoint_files.hardlink(file, "best.ckpt")
    assert (tmp_path / "best.ckpt").read_bytes() == file.read_bytes()
    assert not (tmp_path / "best.ckpt").samefile(file)


def test_of_equally_new_files_the_last_comes_first_then_the_previous(tmp_path: Path) -> None:
    for name in ("best", "previous", "last"):
        saved(tmp_path).rename(tmp_path / f"{name}.ckpt")
    for name in ("last", "previous", "best"):
        newest, damaged = checkpoint_files.newest_checkpoint(tmp_path)
        assert (newest, damaged) == (tmp_path / f"{name}.ckpt", {})
        (tmp_path / f"{name}.ckpt").unlink()
    assert checkpoint_files.newest_checkpoint(tmp_path) == (None, {})


def test_a_second_name_replaces_a_former_file_and_what_a_kill_has_left(tmp_path: Path) -> None:
    file, former = saved(tmp_path), tmp_path / "best.ckpt"
    former.write_bytes(b"former")
    left = tmp_path / ".best.ckpt.tmp"
    left.write_bytes(b"left by a killed process")
    checkpoint_files.hardlink(file, "best.ckpt")
    assert former.samefile(file)
    assert not left.exists()
