"""Plan the jobs of a grid one by one, each when its turn comes.

combination of overrides -> composed, in a tenth of a second -> identity and folder of its job, in the ledger

A command that finds a combination in the ledger doesn't compose it again, unless a file has changed from which
configurations are made.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from vitlab.config import paths
from vitlab.config.schema import Node
from vitlab.jobs import identity
from vitlab.runs.folder import RESULTS
from vitlab.sweeps import ledger

INTERVAL = 0.5  # seconds between two entries of jobs that were started before in the ledger

log = logging.getLogger(__name__)


class Planner:
    """The jobs of a grid in order; `describe` returns identity and entry of a job, `folders` have the YAML files."""

    def __init__(
        self,
        sweep: Path,
        combinations: Sequence[list[str]],
        describe: Callable[[list[str]], tuple[str, Node]],
        folders: Iterable[Path],
    ) -> None:
        self.sweep, self.combinations, self.describe = sweep, combinations, describe
        self.digest = files_digest([*folders, Path.cwd()])
        head = ledger.read_head(sweep)
        settings = [ledger.job_settings(overrides, head.get("varies", [])) for overrides in combinations]
        self.keys = [identity.short_digest(setting, 12) for setting in settings]
        jobs, planned = head.get("jobs", {}), head.get("planned", {}).get(self.digest, {})
        # of planned jobs, by the digest of their settings
        self.folders = {key: sweep / jobs[name]["folder"] for key, name in planned.items() if name in jobs}
        self.error: Exception | None = None
        self.new, self.planned = dict[str, Node](), dict[str, str]()  # not in the ledger yet
        self.write()

    def write(self) -> None:
        total, self.written = len(set(self.keys)), time.monotonic()
        ledger.add_jobs(self.sweep, self.new, planned=self.planned, digest=self.digest, total=total)
        self.new, self.planned = {}, {}

    def jobs(self) -> Iterator[tuple[Path, list[str]]]:
        """Folders and overrides, without combinations that are the same job as one before.

        Ends at a combination that can't be composed, with the reason in `error`: a launcher may wait for other jobs.
        """
        known: dict[Path, list[str]] = {}
        for key, overrides in zip(self.keys, self.combinations, strict=True):
            if key not in self.folders:
                try:
                    name, entry = self.describe(overrides)
                except Exception as error:  # of many kinds
                    self.error = error
                    break
                self.folders[key] = self.sweep / entry["folder"]
                self.new[name], self.planned[key] = entry, name
                if time.monotonic() - self.written > INTERVAL or not (self.folders[key] / RESULTS).exists():
                    self.write()
            folder = self.folders[key]
            if folder in known:
                log.warning("%s is the same job as %s", overrides, known[folder])
            else:
                known[folder] = overrides
                yield folder, overrides
        self.write()


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
