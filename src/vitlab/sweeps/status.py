"""The status of a sweep, read every second.

Read are the ledger, locks and `results.json` of the jobs that are not done, and the last lines of `metrics.csv` of
running ones.
"""

import csv
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlab.config.printable import printable
from vitlab.runs.folder import read_config
from vitlab.sweeps import ledger
from vitlab.sweeps.ledger import Job, Status, Sweep
from vitlab.sweeps.report import table

TAIL = 4096  # bytes to read from the end of metrics.csv
MAX_ERROR = 120  # characters of an error in a line; results.json has all of it
# the same command resumes them
STOPPED: tuple[Status, ...] = ("stopped", "preempted", "interrupted", "cancelled", "unreadable")


@dataclass(frozen=True)
class SweepStatus:
    """A sweep at one moment: `total` may exceed the number of known jobs, `left` are the estimated seconds."""

    sweep: Sweep
    progress: dict[str, float]  # the completed share of the jobs that have started and are not done, by id
    total: int
    left: float | None

    def count(self, *statuses: Status) -> int:
        return sum(job.status in statuses for job in self.sweep.jobs)


class StatusPoller:
    """Reads the status of a sweep; `planned` is its number of jobs if the ledger lists them only as they start."""

    def __init__(self, folder: Path, *, planned: int = 0) -> None:
        self.folder, self.planned = folder, planned
        self.done: dict[str, Job] = {}
        self.max_epochs: dict[Path, int] = {}
        self.start = time.time()
        self.work_before: float | None = None  # in jobs, at the first poll

    def poll(self) -> SweepStatus | None:
        """Return the status; None before the ledger is written."""
        head = ledger.read_head(self.folder, warn=False)
        if not (objectives := head.get("objectives")):
            return None
        varies, entries = ledger.varying_keys(head), head.get("jobs", {})
        jobs = [self.done.get(key) or ledger.read_job(self.folder, key, entries[key], varies) for key in entries]
        self.done = {job.id: job for job in jobs if job.status in ledger.DONE}
        started = [job for job in jobs if job.status not in (*ledger.DONE, "waiting")]
        progress = {job.id: self.completed_share(job.folder) for job in started}
        total = max(len(jobs), self.planned, head.get("total") or 0)
        ended = sum(1 - progress[job.id] for job in started if job.status in ("crashed", "stopped"))
        left = self.remaining_seconds(progress, total - ended)
        return SweepStatus(Sweep(self.folder, self.folder.name, "", objectives, jobs), progress, total, left)

    def completed_share(self, folder: Path) -> float:
        if folder not in self.max_epochs:
            with suppress(OSError, ValueError, AttributeError):
                epochs = (read_config(folder).get("trainer") or {}).get("max_epochs")
                self.max_epochs[folder] = epochs if isinstance(epochs, int) else 0
        epoch = 0  # counts from 1
        for row in read_last_rows(folder / "metrics.csv"):
            with suppress(ValueError, TypeError, KeyError, OverflowError):
                epoch = int(float(row["epoch"]))
        epochs = self.max_epochs.get(folder, 0)
        return min(1.0, max(0, epoch - 1) / epochs) if epochs > 0 else 0.0

    def remaining_seconds(self, progress: Mapping[str, float], total: float) -> float | None:
        """Estimate the remaining time at the speed since the first poll; None before that can be measured."""
        work = len(self.done) + sum(progress.values())
        if self.work_before is None:
            self.work_before = work
        gained, elapsed = work - self.work_before, time.time() - self.start
        return elapsed * (total - work) / gained if gained > 0.1 and elapsed > 1 else None


def finite_score(value: Any) -> float | None:
    with suppress(TypeError, ValueError):
        return number if math.isfinite(number := float(value)) else None
    return None


def read_last_rows(file: Path) -> Iterator[dict[str, str]]:
    """Read the last complete rows of a table."""
    with suppress(OSError, csv.Error), file.open("rb") as content:
        columns = next(csv.reader([content.readline().decode(errors="replace")]), [])
        begin, end = content.tell(), content.seek(0, 2)
        content.seek(max(begin, end - TAIL))
        lines = content.read().decode(errors="replace").splitlines()
        for cells in csv.reader(lines[1 if end - TAIL > begin else 0 :]):
            if len(cells) == len(columns):
                yield dict(zip(columns, cells, strict=True))


def status_line(status: SweepStatus) -> str:
    sweep, total = status.sweep, status.total
    done, running, failed = status.count(*ledger.DONE), status.count("running"), status.count("crashed")
    line = f"sweep {sweep.name}: {done} of {total} jobs done, {running} running, {failed} failed"
    waiting, stopped = total - len(sweep.jobs) + status.count("waiting"), status.count(*STOPPED)
    line += "".join(f", {n} {kind}" for n, kind in ((stopped, "stopped"), (waiting, "waiting")) if n)
    if (best := table.best_job(sweep)) is not None:
        objective, _ = table.first_objective(sweep)
        line += f"; best {objective} {best.results[objective]:.4g} ({best.name})"
    return f"{line}; about {format_duration(status.left)} left" if status.left else line


def job_line(job: Job, objective: str) -> str:
    if job.status in ("crashed", "unreadable"):
        error = shorten(str(job.results.get("error", "")), MAX_ERROR)
        return f"{job.name}: {job.status}: {error or 'no error was recorded'}"
    score, seconds = (finite_score(job.results.get(name)) for name in (objective, "seconds"))
    line = f"{job.name}: {job.status}" + (f", {objective} {score:.4g}" if score is not None else "")
    return f"{line}, {format_duration(seconds)}" if seconds else line


def shorten(text: str, length: int) -> str:
    """Return a text in one line of at most `length` characters."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= length else f"{text[: length - 3]}..."


def format_duration(seconds: float) -> str:
    """Format a duration as `40 s`, `3 min` or `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
