"""Files of a data set elsewhere: fetched by LitData when they are needed, whole, and no more of them than allowed."""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from vitlab.data.storage import Storage, is_remote


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """A folder that is asked for as `local:`, LitData's scheme for another disk."""
    (folder := tmp_path / "far" / "train").mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.bin").write_bytes(bytes([number]) * 1000)
    (tmp_path / "far" / "about.json").write_text("first")
    return tmp_path / "far"


def storage(far: Path, gigabytes: float = 1.0) -> Storage:
    return Storage(f"local:{far}", cache_dir=str(far.parent / "cache"), cache_gb=gigabytes)


def test_a_folder_of_this_machine_is_read_where_it_lies(far: Path) -> None:
    assert Storage(str(far)).local("train/0.bin") == far / "train" / "0.bin"
    assert [is_remote(place) for place in (str(far), "data", "s3://a/b", "gs://a", f"local:{far}")] == [0, 0, 1, 1, 1]


def test_a_file_is_fetched_once_and_kept(far: Path) -> None:
    file = storage(far).local("train/1.bin", size=1000)
    assert file.read_bytes() == bytes([1]) * 1000
    (far / "train" / "1.bin").unlink()
    assert storage(far).local("train/1.bin").read_bytes() == bytes([1]) * 1000


def test_what_was_not_used_for_longest_makes_room(far: Path) -> None:
    small = storage(far, gigabytes=2.5e-6)  # of three files, two
    first, second = small.local("train/0.bin", size=1000), small.local("train/1.bin", size=1000)
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    small.local("train/0.bin")
    small.local("train/2.bin", size=1000)
    assert [(small.folder / "train" / f"{number}.bin").is_file() for number in range(3)] == [True, False, True]


def test_what_a_killed_download_left_is_removed_and_what_another_process_fetches_stays_and_counts(
    far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = storage(far, gigabytes=2.5e-6)
    first, copy = small.local("train/0.bin", size=1000), shutil.copy

    def halfway(source: str, target: str) -> None:
        Path(target).write_bytes(bytes(700))
        signal.pause()

    processes = multiprocessing.get_context("fork")
    fetching = [processes.Process(target=small.local, args=(f"train/{n}.bin",)) for n in (1, 2)]
    monkeypatch.setattr(shutil, "copy", halfway)
    try:
        for process in fetching:
            process.start()
        monkeypatch.setattr(shutil, "copy", copy)
        while sum(file.stat().st_size for file in small.folder.rglob("*.tmp")) < 1400:
            assert all(process.is_alive() for process in fetching)
            time.sleep(0.01)
        halves = {file.parent.name: file for file in small.folder.rglob("*.tmp")}
        assert set(halves) == {".1.bin.part", ".2.bin.part"}
        fetching[0].kill()
        fetching[0].join()
        (far / "train" / "3.bin").write_bytes(bytes([3]) * 1000)
        small.local("train/3.bin", size=1000)
        assert not halves[".1.bin.part"].parent.exists()
        assert halves[".2.bin.part"].stat().st_size == 700
        assert not first.exists(), "with those 700, there would be more than 2500"
    finally:
        for process in fetching:
            process.kill()
            process.join()
    assert small.local("train/2.bin", size=1000).read_bytes() == bytes([2]) * 1000
    assert not list(small.folder.rglob("*.part"))


def test_what_is_missing_or_of_another_size_is_an_error_that_names_it_and_leaves_nothing(far: Path) -> None:
    with pytest.raises(OSError, match=r"far/train/7\.bin can't be fetched \(The provided remote_path doesn't exist"):
        storage(far).local("train/7.bin")
    with pytest.raises(OSError, match="it came with 1,000 bytes instead of 999"):
        storage(far).local("train/0.bin", size=999)
    assert not list(storage(far).folder.rglob("*.bin"))


def test_another_description_of_the_same_place_has_files_of_its_own(far: Path) -> None:
    before, after = storage(far), storage(far)
    assert before.described("about.json") == b"first"
    before.local("train/0.bin")
    (far / "about.json").write_text("second")
    (far / "train" / "0.bin").write_bytes(b"new")
    assert after.described("about.json") == b"second"
    assert after.local("train/0.bin").read_bytes() == b"new"


def test_a_scheme_that_nothing_reads_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^data_dir=ftp://a/b: ftp:// is none of s3://, gs://, .*; copy the folder to"
    ):
        Storage("ftp://a/b")


def test_without_credentials_an_error_says_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(OSError, match="can't be fetched") as caught:
        Storage("s3://nobody-s/set", cache_dir=str(tmp_path)).described("prepared.json")
    assert str(caught.value) == (
        "s3://nobody-s/set/prepared.json can't be fetched (there are no valid credentials for s3://; set "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or ~/.aws/credentials)"
    )
