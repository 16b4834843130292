"""Locks of a run folder: one process at a time trains in it."""

import fcntl
import os
import platform
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from vitlab.config.schema import Node
from vitlab.runs.folder import log, read_results

LOCKS = {"job": ".job.lock", "rank0": ".rank0.lock"}  # of the process that starts the ranks, and of rank 0
ORPHAN_TIMEOUT = 20.0  # seconds in which the data-loading workers of a killed process end
PROBE_TIMEOUT = 0.5  # seconds in which `is_locked` of another process releases a lock


def run_lock(run_dir: Path, role: str) -> AbstractContextManager[object]:
    """Own a run folder now, until the block or the process ends. Raises `RunInUse`."""
    timeout = ORPHAN_TIMEOUT if is_lock_orphaned(run_dir) else PROBE_TIMEOUT
    try:
        return folder_lock(run_dir, LOCKS[role], "make sure that only one process trains in it", timeout=timeout)
    except TimeoutError:
        raise RunInUse(f"{run_dir} is being trained in by {owner(read_results(run_dir))}") from None


def folder_lock(folder: Path, name: str, remedy: str, *, timeout: float = -1) -> AbstractContextManager[object]:
    """Lock a folder now, until the block or the process ends; warn with the remedy on file systems without locks.

    Raises `TimeoutError` if another process holds the lock for longer than `timeout` seconds (-1: no limit).
    """
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / name).acquire(timeout=timeout)
    except TimeoutError:
        raise
    except (OSError, NotImplementedError) as error:
        log.warning("%s can't be locked (%s): %s", folder, error, remedy)
        return nullcontext()


def is_lock_orphaned(run_dir: Path) -> bool:
    """Whether the process in `results.json` is dead, so that its workers, which may hold its lock, will end too."""
    results = read_results(run_dir)
    return results.get("host") == platform.node() and not pid_alive(results.get("process"))


def is_held(run_dir: Path, roles: Iterable[str] = LOCKS) -> bool:
    """Whether another process owns a run folder. Waits for the workers of a killed one to end."""
    deadline = time.monotonic() + ORPHAN_TIMEOUT
    while True:
        try:
            if not is_locked(run_dir, roles):
                return False
        except OSError:
            return False
        if time.monotonic() > deadline or not is_lock_orphaned(run_dir):
            return True
        time.sleep(0.2)


def is_locked(run_dir: Path, roles: Iterable[str] = LOCKS) -> bool:
    """Whether any process holds a lock of a run folder now. Raises `OSError` on file systems without locks."""
    for role in roles:
        with suppress(FileNotFoundError), (run_dir / LOCKS[role]).open("rb") as file:
            try:
                # a shared lock: two processes that look at the same time must not see each other
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def pid_alive(process: Any) -> bool:
    try:
        os.kill(int(process), 0)
    except (OSError, TypeError, ValueError):
        return False
    return True


def owner(results: Node) -> str:
    """The process in `results.json`, for messages."""
    return f"process {results.get('process', '(unknown)')} on {results.get('host', 'an unknown machine')}"


class RunInUse(RuntimeError):
    """Another process trains in the folder."""
