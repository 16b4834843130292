"""Plan the jobs of a grid in a process of its own, while the first of them run.

combinations of overrides -> composed, a tenth of a second each -> identity and folder of each job, in the ledger

A command that finds a combination in the ledger doesn't compose it again, unless a file has changed from which
configurations are made.
"""

import hashlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path

from vitlab.config import paths
from vitlab.config.schema import Node
from vitlab.distributed import signals
from vitlab.distributed.launch import exit_with_parent
from vitlab.jobs import identity
from vitlab.sweeps import ledger

FLUSH = 1.0  # seconds between two writes of the ledger
POLL = 0.02

log = logging.getLogger(__name__)


class Planner:
    """The jobs of a grid in order, each as soon as it is planned; a context, which ends the planning process.

    `describe` composes overrides, and returns the job's identity and entry. `folders` have the YAML files.
    """

    def __init__(
        self,
        sweep: Path,
        combinations: Sequence[list[str]],
        describe: Callable[[list[str]], tuple[str, Node]],
        folders: Iterable[Path],
    ) -> None:
        self.sweep, self.combinations, self.describe = sweep, combinations, describe
        self.digest = files_digest([*folders, Path.cwd()])
        varies = ledger.read_head(sweep).get("varies", [])
        settings = [ledger.job_settings(overrides, varies) for overrides in combinations]
        self.keys = [identity.short_digest(setting, 12) for setting in settings]
        self.folders: dict[str, Path] = {}  # of planned jobs, by the digest of their settings
        self.state: tuple[int, int] | None = None  # of the ledger when it was read
        self.process: ForkProcess | None = None
        self.failed = False
        self.read()

    @property
    def missing(self) -> int:
        return sum(key not in self.folders for key in self.keys)

    def __enter__(self) -> "Planner":
        if self.missing:
            self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            self.process.kill()  # the ledger's file is replaced, or it isn't
            self.process.join()

    def start(self) -> None:
        self.process = PlanningProcess(self)
        self.process.start()

    def read(self) -> None:
        """Read which jobs are planned, if the ledger has changed."""
        try:
            status = (self.sweep / ledger.SWEEP).stat()
        except FileNotFoundError:
            return
        if (state := (status.st_mtime_ns, status.st_size)) != self.state:
            self.state, head = state, ledger.read_head(self.sweep, warn=False)
            jobs, planned = head.get("jobs", {}), head.get("planned", {}).get(self.digest, {})
            self.folders |= {key: self.sweep / jobs[name]["folder"] for key, name in planned.items() if name in jobs}

    def jobs(self) -> Iterator[tuple[Path, list[str]]]:
        """Folders and overrides, without combinations that are the same job as one before."""
        known: dict[Path, list[str]] = {}
        for key, overrides in zip(self.keys, self.combinations, strict=True):
            while key not in self.folders:
                ended = self.process is None or not self.process.is_alive()
                self.read()
                if key not in self.folders and ended:
                    if self.process is not None and self.process.exitcode:
                        self.failed = True  # not raised here, within a launcher that waits for its jobs
                        return
                    self.start()  # the ledger was damaged, and rebuilt without what was planned
                time.sleep(POLL if key not in self.folders else 0)
            folder = self.folders[key]
            if folder in known:
                log.warning("%s is the same job as %s", overrides, known[folder])
            else:
                known[folder] = overrides
                yield folder, overrides

    def plan(self) -> None:
        """Compose what isn't planned, and add it to the ledger: the first job at once, the others in parts."""
        entries, names, due = dict[str, Node](), dict[str, str](), 0.0
        for key, overrides in zip(self.keys, self.combinations, strict=True):
            if key in self.folders:
                continue
            names[key], entry = self.describe(overrides)
            entries[names[key]] = entry
            if time.monotonic() >= due:
                ledger.add_jobs(self.sweep, entries, planned={self.digest: names}, total=len(self.keys))
                entries, names, due = {}, {}, time.monotonic() + FLUSH
        ledger.add_jobs(self.sweep, entries, planned={self.digest: names})


class PlanningProcess(ForkProcess):
    """A fork, which ends with its parent; a signal to stop is its parent's to handle."""

    def __init__(self, planner: Planner) -> None:
        super().__init__(name="planner", daemon=True)
        self.planner, self.parent = planner, os.getpid()

    def run(self) -> None:
        for number in signals.SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        exit_with_parent(self.parent)
        self.planner.plan()


def files_digest(folders: Iterable[Path]) -> str:
    """A digest of the Python and YAML files of vitlab and in folders, by their paths, times and sizes.

    Of the working directory these are the files in it and in its packages.
    """
    digest = hashlib.blake2b(paths.version().encode(), digest_size=6)
    files = [*paths.PACKAGE.rglob("*.py"), *paths.EXPERIMENTS.glob("*.yaml")]
    for folder in folders:
        files += [*folder.glob("*.py"), *folder.glob("*/*.py")] if folder == Path.cwd() else folder.rglob("*.yaml")
    for file in sorted(set(files)):
        status = file.stat()
        digest.update(f"{file} {status.st_mtime_ns} {status.st_size}\n".encode())
    return digest.hexdigest()
