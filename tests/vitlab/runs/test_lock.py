"""One process at a time trains in a run folder."""

import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vitlab.runs import lock
from vitlab.runs.folder import (
    RESULTS,
)
from vitlab.storage import atomic

OWNER = """
import sys, time
from pathlib import Path
from vitlab.runs.lock import run_lock
folder = Path(sys.argv[1])
with run_lock(folder, sys.argv[2]):
    (folder / "held").touch()
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[[str], "subprocess.Popen[bytes]"]]:
    """Another process that owns the folder in a role."""
    started: list[subprocess.Popen[bytes]] = []

    def start(role: str) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "PYTHONPATH": str(Path(lock.__file__).parents[2])}
        started.append(subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path), role], env=environment))
        while not (tmp_path / "held").exists():
            time.sleep(0.01)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("role", lock.LOCKS)
def test_a_folder_has_one_owner_until_that_ends_however_it_ends(role: str, tmp_path: Path, owner: Any) -> None:
    assert not lock.is_held(tmp_path)
    process = owner(role)
    alive = {"status": "running", "host": platform.node(), "process": process.pid}
    atomic.atomic_write(tmp_path / RESULTS, json.dumps(alive))
    assert lock.is_held(tmp_path)
    with (
        pytest.raises(lock.RunInUse, match=rf"is being trained in by process {process.pid} on "),
        lock.run_lock(tmp_path, role),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not lock.is_held(tmp_path)
    with lock.run_lock(tmp_path, role):
        pass


def test_a_folder_that_cant_be_locked_is_used_and_that_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / lock.LOCKS["job"]).mkdir()  # no file can be made there
    with lock.run_lock(tmp_path, "job"):
        (line,) = caplog.messages
    assert line.startswith(f"{tmp_path} can't be locked (")
    assert line.endswith("): make sure that only one process trains in it")


def test_what_a_killed_run_leaves_for_a_moment_is_waited_for(tmp_path: Path, owner: Any) -> None:
    process = owner("rank0")
    dead = {"status": "running", "host": platform.node(), "process": 2**22 + 1}
    atomic.atomic_write(tmp_path / RESULTS, json.dumps(dead))
    threading.Timer(0.5, process.kill).start()
    assert not lock.is_held(tmp_path), "the process that is recorded is dead: what holds the lock will go as well"


def test_processes_that_look_at_the_same_time_do_not_see_each_other(tmp_path: Path) -> None:
    with lock.run_lock(tmp_path, "job"):
        pass
    file = tmp_path / lock.LOCKS["job"]
    file.touch()  # filelock may remove it
    with file.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert not lock.is_locked(tmp_path)
    with lock.run_lock(tmp_path, "job"):
        assert lock.is_locked(tmp_path)
