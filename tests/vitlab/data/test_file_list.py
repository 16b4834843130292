"""Paths in one buffer are the same sequence as a list, and their digest is that of their last two parts."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from vitlab.data.file_list import (
    FileList,
    Listing,
    cache_folder,
    find_images,
    folder_cache_lock,
    folders_state,
    images_below,
    is_unchanged,
    load_listing,
    read_listing,
    remove_old_files,
)

PATHS = ["/data/b/2.jpg", "/data/a/x/1.jpg", "/data/\udcff\udcfe.png", "c.jpg", "d/é.jpg"]


def test_a_file_list_is_a_sequence_of_strings() -> None:
    files = FileList(PATHS)
    assert (len(files), list(files), files[-1], files[1:3]) == (5, PATHS, PATHS[-1], PATHS[1:3])
    part = files.subset(np.array([4, 0]))
    assert list(part) == [PATHS[4], PATHS[0]]
    assert list(part.subset(np.array([1]))) == [PATHS[0]]
    assert files == PATHS
    assert files != PATHS[:4]
    assert list(FileList([])) == []
    with pytest.raises(IndexError):
        files[5]


def test_names_are_the_last_two_parts_in_any_order() -> None:
    generator = np.random.default_rng(0)
    paths = [f"/data/{'deep/' * (i % 3)}class{i % 7}/{i}.jpg" for i in range(1000)] + PATHS[3:]
    files = FileList(paths)
    for order in (np.arange(1002), generator.permutation(1002)[:400]):
        expected = [os.fsencode("/".join(Path(paths[i]).parts[-2:])) for i in order]
        digests = [hashlib.blake2b(b"".join(part)).digest() for part in (expected, files.subset(order).names())]
        assert digests[0] == digests[1]
    assert b"".join(FileList(["a/b/1.jpg", "a/b/2.jpg"]).names()) == b"b/1.jpgb/2.jpg"


def test_the_common_folder_is_that_of_the_complete_list() -> None:
    files = FileList(["/data/train/a/1.jpg", "/data/val/a/1.jpg", "/data/train/b/1.jpg"])
    assert files.common_folder() == files.subset(np.array([0])).common_folder() == "/data"


def test_a_folder_that_has_just_changed_has_no_state(tmp_path: Path) -> None:
    now = {str(tmp_path): tmp_path.stat().st_mtime_ns}
    assert folders_state(now) == ""
    os.utime(tmp_path, (1e9, 1e9))
    settled = {str(tmp_path): tmp_path.stat().st_mtime_ns}
    assert folders_state(settled) != ""
    assert (is_unchanged(settled), is_unchanged(now)) == (True, False)
    assert not is_unchanged({str(tmp_path / "gone"): 0})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x00" * 100])
def test_a_damaged_listing_is_made_again(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    assert read_listing(tmp_path / "a.npz") is None


@pytest.mark.parametrize("state", ["settled", ""])
def test_a_listing_is_made_once_and_again_if_a_folder_changes(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    (folder := tmp_path / "data").mkdir()
    os.utime(folder, (1e9, 1e9))
    made: list[Listing] = []

    def make() -> Listing:
        times = {str(folder): folder.stat().st_mtime_ns}
        made.append(Listing(["a", "b"], FileList(PATHS, state), np.arange(5) % 2, times, ["a note"]))
        return made[-1]

    for _ in range(2):
        listing = load_listing("key", make)
        assert (listing.names, list(listing.files), listing.notes) == (["a", "b"], PATHS, ["a note"])
        files = made[0].files
        assert (listing.files.state, listing.files.first, listing.files.last) == (state, files.first, files.last)
        assert listing.labels.tolist() == [0, 1, 0, 1, 0]
    assert len(made) == (1 if state else 2), "a folder that has just changed is read again"
    assert [record.message for record in caplog.records] == ["a note"] * 2
    load_listing("other", make)
    os.utime(folder, (2e9, 2e9))
    load_listing("key", make)
    assert len(made) == (3 if state else 4)


def test_a_name_with_characters_of_patterns_is_a_name_if_there_is_such_a_file(tmp_path: Path) -> None:
    for name in ("[a]/1.png", "a/2.png", "a/b/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for images, found in (
        ("[a]", ["[a]/1.png"]),
        ("[a]*", ["a/2.png", "a/b/3.png"]),
        ("a/*.png", ["a/2.png"]),
        ("**/3.png", ["a/b/3.png"]),
        ("a/2.png", ["a/2.png"]),
    ):
        assert find_images(str(tmp_path / images)) == [str(tmp_path / name) for name in found]
    with pytest.raises(ValueError, match=r"is no image, and no folder or pattern with images"):
        find_images(str(tmp_path / "b*"))


def test_the_lock_of_a_folder_without_room_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with folder_cache_lock(tmp_path / "file" / "a.npz", "x"):
        pass


def test_what_was_not_used_for_long_is_removed(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "old", (1e9, 1e9))
    remove_old_files(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["new"]


def test_listings_are_kept_where_the_user_has_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/vitlab/folders")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "vitlab" / "folders"


def test_images_are_listed_below_a_folder_with_what_links_lead_to(tmp_path: Path) -> None:
    for name in ("a/1.JPG", "a/b/2.png", "a/notes.txt", "a/.hidden/3.png", "other/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "c").symlink_to(tmp_path / "other")
    times, by_link = dict[str, int](), set[str]()
    listed = sorted(images_below(str(tmp_path / "a"), times, by_link))
    assert listed == [str(tmp_path / "a" / name) for name in ("1.JPG", "b/2.png", "c/4.png")]
    assert by_link == {str(tmp_path / "a" / "c" / "4.png")}
    assert set(times) == {str(tmp_path / name) for name in ("a", "a/b", "a/c")}
