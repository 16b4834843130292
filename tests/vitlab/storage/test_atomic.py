"""An atomic write leaves the old content or the new one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitlab.storage.atomic import atomic_path, atomic_write, file_sha256, write_csv

CODE = """
import sys
from pathlib import Path
from vitlab.storage.atomic import atomic_write
file, n = Path(sys.argv[1]), 10**6
while True:
    atomic_write(file, "a" * n)
    atomic_write(file, "b" * n)
"""


def test_a_kill_while_writing_leaves_the_old_text(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text("old")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", CODE, str(file)], env=environment)
    while file.read_text() == "old":
        time.sleep(0.01)
    for _ in range(50):
        text = file.read_text()
        assert text in ("a" * 10**6, "b" * 10**6)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert file.read_text() in ("a" * 10**6, "b" * 10**6)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    atomic_write(file, "old")

    def write() -> None:
        with atomic_path(file) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_bytes_and_their_digest(tmp_path: Path) -> None:
    atomic_write(tmp_path / "file", b"abc")
    assert (tmp_path / "file").read_bytes() == b"abc"
    assert file_sha256(tmp_path / "file").startswith("ba7816bf8f01cfea")


def test_a_cell_is_no_formula_and_no_control_character(tmp_path: Path) -> None:
    write_csv(tmp_path / "jobs.csv", [["=1+1", -1.5, "-1.5", None, "a\x1b[2J\nb"]])
    assert (tmp_path / "jobs.csv").read_text() == "'=1+1,-1.5,-1.5,,a\\x1b[2J\\nb\n"
