"""Locks: one process at a time trains in a run folder."""

import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from vitlab.config.schema import Node
from vitlab.runs.folder import log, read_results

LOCKS = {"job": ".job.lock", "rank0": ".rank0.lock"}  # who starts the ranks, and the rank that writes
ORPHAN_TIMEOUT = 20.0  # seconds that what a killed process left (its loading workers) may hold a lock
PROBE_TIMEOUT = 0.5  # seconds that somebody may hold it who only looks whether it is held


@contextmanager
def run_lock(run_dir: Path, role: str) -> Iterator[None]:
    """Owns a run folder until the block ends, or the process does, however it ends. Raises `Occupied`."""
    patience = ORPHAN_TIMEOUT if is_lock_orphaned(run_dir) else PROBE_TIMEOUT
    try:
        lock = folder_lock(run_dir, LOCKS[role], "take care that only one process trains in it", timeout=patience)
    except TimeoutError:
        raise RunInUse(f"{run_dir} is being trained in by {owner(read_results(run_dir))}") from None
    with lock:
        yield


def folder_lock(folder: Path, name: str, remedy: str, *, timeout: float = -1) -> AbstractContextManager[object]:
    """Locks a folder at once, until the block ends or the process does; on file systems without locks tells a remedy.

    Raises `TimeoutError` where somebody holds the lock for longer than `timeout` seconds (-1: waits).
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
    """Whether the process that a folder knows of is dead: what still holds its lock will go as well."""
    results = read_results(run_dir)
    return results.get("host") == platform.node() and not pid_alive(results.get("process"))


def is_held(run_dir: Path, roles: Iterable[str] = LOCKS) -> bool:
    """Whether another process owns a run folder. Waits a moment for what a killed one has left behind."""
    deadline = time.monotonic() + ORPHAN_TIMEOUT
    while True:
        try:
            if not is_locked(run_dir, roles):
                return False
        except (OSError, NotImplementedError):
            return False
        if time.monotonic() > deadline or not is_lock_orphaned(run_dir):
            return True
        time.sleep(0.2)


def is_locked(run_dir: Path, roles: Iterable[str] = LOCKS) -> bool:
    """Whether somebody holds a lock of a run folder now. Raises `OSError` or `NotImplementedError` without locks.

    A glance: it keeps nobody from taking the folder for longer than that.
    """
    from filelock import FileLock

    try:
        for role in roles:
            if (run_dir / LOCKS[role]).exists():
                with FileLock(run_dir / LOCKS[role], timeout=0):
                    pass
    except TimeoutError:
        return True
    return False


def pid_alive(process: Any) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(int(process), 0)
    except (OSError, TypeError, ValueError):
        return False
    return True


def owner(results: Node) -> str:
    """Who trains in a folder, as far as its `results.json` tells."""
    return f"process {results.get('process', '(not known)')} on {results.get('host', 'a machine not known')}"


class RunInUse(RuntimeError):
    """Another process trains in the folder."""
