"""Files of a data set elsewhere: fetched when they are needed, complete, and no more of them than allowed."""

import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from vitlab.storage.remote import Storage, hub_problem, is_remote, secret_problem, url_problem


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """A folder that is asked for by a URL."""
    (folder := tmp_path / "far" / "train").mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.tar").write_bytes(bytes([number]) * 1000)
    (tmp_path / "far" / "about.json").write_text("first")
    return tmp_path / "far"


def storage(far: Path, gigabytes: float = 1.0) -> Storage:
    return Storage(f"file://{far}", cache_dir=str(far.parent / "cache"), cache_gb=gigabytes)


def fetch(storage: Storage, number: int) -> Path:
    os.close(storage.open(f"train/{number}.tar", size=1000))
    return storage.folder / "train" / f"{number}.tar"


def test_a_folder_of_this_machine_is_read_in_place(far: Path) -> None:
    assert Storage(str(far)).local_file("train/0.tar") == far / "train" / "0.tar"
    assert [is_remote(place) for place in (str(far), "data", "s3://a/b", "gs://a", f"file://{far}")] == [0, 0, 1, 1, 1]


def test_a_file_is_fetched_once_and_kept(far: Path) -> None:
    file = fetch(storage(far), 1)
    assert file.read_bytes() == bytes([1]) * 1000
    (far / "train" / "1.tar").unlink()
    assert storage(far).local_file("train/1.tar").read_bytes() == bytes([1]) * 1000


def test_what_was_not_used_for_longest_makes_room(far: Path) -> None:
    small = storage(far, gigabytes=2.5e-6)  # of three files, two
    first, second = fetch(small, 0), fetch(small, 1)
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    fetch(small, 0)
    fetch(small, 2)
    assert [(small.folder / "train" / f"{number}.tar").is_file() for number in range(3)] == [True, False, True]


def test_a_cache_within_a_folder_of_other_files_removes_none_of_them(far: Path) -> None:
    others = [far.parent / "cache" / name for name in ("mine.tar", "data/mine.tar", "data/deep/mine.bin", "a.part")]
    for file in others:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(5000))
        os.utime(file, (1, 1))
    small = storage(far, gigabytes=1e-6)
    fetch(small, 0)
    assert fetch(small, 1).is_file()
    assert not (small.folder / "train" / "0.tar").exists()
    assert [file for file in others if not file.is_file()] == []


def test_what_a_killed_process_left_is_overwritten(far: Path) -> None:
    small = storage(far, gigabytes=2.5e-6)
    first = fetch(small, 0)
    (part := small.folder / "train" / ".1.tar.part").write_bytes(bytes(7000))
    assert fetch(small, 1).read_bytes() == bytes([1]) * 1000
    assert first.is_file()
    assert not part.exists()


def test_what_is_missing_or_of_another_size_is_an_error_that_names_it_and_leaves_nothing(far: Path) -> None:
    with pytest.raises(OSError, match=r"far/train/7\.tar can't be fetched \(there is no such file\)"):
        storage(far).local_file("train/7.tar")
    with pytest.raises(OSError, match="it came with 1,000 bytes instead of 999"):
        storage(far).open("train/0.tar", size=999)
    assert not list(storage(far).folder.rglob("*.tar"))


def test_another_description_of_the_same_place_has_files_of_its_own(far: Path) -> None:
    before, after = storage(far), storage(far)
    assert before.read_description("about.json") == b"first"
    before.local_file("train/0.tar")
    (far / "about.json").write_text("second")
    (far / "train" / "0.tar").write_bytes(b"new")
    assert after.read_description("about.json") == b"second"
    assert after.local_file("train/0.tar").read_bytes() == b"new"


def test_a_scheme_that_nothing_reads_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^data_dir=nfs9://a/b can't be read: .*nfs9; or copy the folder to"):
        Storage("nfs9://a/b")


def test_a_package_that_a_scheme_needs_is_named() -> None:
    if find_spec("adlfs"):
        pytest.skip("adlfs is installed")
    assert "data_dir=az://a/b can't be read: Install adlfs to access" in (url_problem("az://a/b") or "")


@pytest.mark.parametrize(
    "place",
    [
        "s3://AKIA:se/cret@bucket/folder",
        "s3://secret@bucket/folder",
        "https://me:secret@host/folder",
        "https://secret@host/folder",
        "https://host/folder?sig=secret",
        "gs://a:secret@bucket",
        "az://a:secret@account/folder",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(place: str) -> None:
    for problem in (secret_problem(place), url_problem(place)):
        assert str(problem).startswith(f"data_dir={place.partition('://')[0]}://... has credentials or options")
        assert "cret" not in str(problem)


@pytest.mark.parametrize(
    "place",
    [
        "a@b:c?d",
        "s3://bucket/a@b",
        "https://host:8000/a",
        "az://container@account.net/x",
        "hf://datasets/a/b@main",
        "file:///a@b:c",
    ],
)
def test_a_place_without_credentials_is_not(place: str) -> None:
    assert secret_problem(place) is None


def test_where_credentials_are_documented_is_said(far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError("Unable to locate credentials")

    monkeypatch.setattr(LocalFileSystem, "get_file", denied)
    with pytest.raises(OSError, match=r"\(Unable to locate credentials\); docs/large_data.md says where"):
        storage(far).local_file("train/0.tar")


class Refuses(BaseHTTPRequestHandler):
    """Answers, if only with an error."""

    def do_HEAD(self) -> None:
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        pass


def test_a_hub_that_answers_is_reached_and_one_that_does_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_problem() == "HF_HUB_OFFLINE is set"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert hub_problem() == ""
    with socket.socket() as nobody:  # a port at which nobody listens
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        begun = time.monotonic()
        assert hub_problem().startswith(f"{endpoint} can't be reached (")
        assert time.monotonic() - begun < 5
