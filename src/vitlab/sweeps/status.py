"""The status of a sweep, read every second without locks.

Read are the ledger, `results.json` of the jobs that are not done, and the last lines of `metrics.csv` of running ones.
"""

import csv
import math
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlab.runs import lock
from vitlab.runs.folder import read_config, read_results
from vitlab.sweeps import ledger
from vitlab.sweeps.ledger import Direction, Status

TAIL = 4096  # bytes to read from the end of metrics.csv
MAX_ERROR = 120  # characters of an error in a line; results.json has all of it
# the same command resumes them
STOPPED: tuple[Status, ...] = ("stopped", "preempted", "interrupted", "cancelled", "unreadable")


@dataclass(frozen=True)
class JobProgress:
    """A job's status, completed share, latest (when finished: best) score, and error."""

    name: str
    status: Status
    done: float = 0.0
    epochs: str = ""  # 7/12
    score: float | None = None
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True)
class SweepStatus:
    """A sweep at one moment: `total` may exceed the number of known jobs, `left` are the estimated seconds."""

    name: str
    objective: str
    direction: Direction
    jobs: list[JobProgress]
    total: int
    left: float | None

    def count(self, *statuses: Status) -> int:
        return sum(job.status in statuses for job in self.jobs)

    @property
    def finished_count(self) -> int:
        return self.count(*ledger.DONE)

    @property
    def best(self) -> JobProgress | None:
        sign = 1 if self.direction == "min" else -1
        scored = [(sign * job.score, job) for job in self.jobs if job.status == "finished" and job.score is not None]
        return min(scored, key=lambda pair: pair[0])[1] if scored else None


class StatusPoller:
    """Reads the status of a sweep; `planned` is its number of jobs if the ledger lists them only as they start."""

    def __init__(self, folder: Path, *, planned: int = 0) -> None:
        self.folder, self.planned = folder, planned
        self.done: dict[str, JobProgress] = {}
        self.max_epochs: dict[Path, int] = {}
        self.start = time.time()
        self.work_before: float | None = None  # in jobs, at the first poll

    def poll(self) -> SweepStatus | None:
        """Return the status; None before the ledger is written."""
        head = ledger.read_head(self.folder, warn=False)
        if not head.get("objectives"):
            return None
        objective, direction = next(iter(head["objectives"].items()))
        varies = ledger.varying_keys(head)
        jobs = []
        for key, entry in head.get("jobs", {}).items():
            if (job := self.done.get(key)) is None:
                name = ledger.choices_text(ledger.choices(entry, varies)) or key
                job = self.job_progress(self.folder / entry["folder"], name, objective)
                if job.status in ledger.DONE:
                    self.done[key] = job
            jobs.append(job)
        total = max(len(jobs), self.planned)
        return SweepStatus(self.folder.name, objective, direction, jobs, total, self.remaining_seconds(jobs, total))

    def job_progress(self, folder: Path, name: str, objective: str) -> JobProgress:
        results = read_results(folder)
        status: Status = results.get("status", "waiting")
        here = results.get("host") == platform.node()
        if status == "running" and here and not lock.pid_alive(results.get("process")):
            status = "interrupted"  # killed before it could record its end
        seconds = finite_score(results.get("seconds"))
        if status in ledger.DONE:
            return JobProgress(name, status, 1.0, "", finite_score(results.get(objective)), seconds)
        done, epochs, score = self.training_progress(folder, objective) if status != "waiting" else (0.0, "", None)
        return JobProgress(name, status, done, epochs, score, seconds, str(results.get("error", "")))

    def training_progress(self, folder: Path, objective: str) -> tuple[float, str, float | None]:
        """Return the completed share, the epoch out of all, and the latest score of a job that is not done."""
        if folder not in self.max_epochs:
            with suppress(OSError, ValueError, AttributeError):
                epochs = (read_config(folder).get("trainer") or {}).get("max_epochs")
                self.max_epochs[folder] = epochs if isinstance(epochs, int) else 0
        epoch, score = 0, None  # epochs count from 1
        for row in read_last_rows(folder / "metrics.csv"):
            with suppress(ValueError, TypeError, KeyError, OverflowError):
                epoch = int(float(row["epoch"]))
            score = finite_score(row.get(objective)) or score
        if (epochs := self.max_epochs.get(folder, 0)) <= 0:
            return 0.0, f"{epoch}" if epoch else "", score
        return min(1.0, max(0, epoch - 1) / epochs), f"{epoch}/{epochs}", score

    def remaining_seconds(self, jobs: list[JobProgress], total: int) -> float | None:
        """Estimate the remaining time at the speed since the first poll; None before that can be measured."""
        work = sum(job.done for job in jobs)
        if self.work_before is None:
            self.work_before = work
        gained, elapsed = work - self.work_before, time.time() - self.start
        remaining = (
            total
            - len(jobs)
            + sum(1 - job.done for job in jobs if job.status not in (*ledger.DONE, "crashed", "stopped"))
        )
        return elapsed * remaining / gained if gained > 0.1 and elapsed > 1 else None


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


def status_line(sweep: SweepStatus) -> str:
    running, failed, stopped = sweep.count("running"), sweep.count("crashed"), sweep.count(*STOPPED)
    line = f"sweep {sweep.name}: {sweep.finished_count} of {sweep.total} jobs done, {running} running, {failed} failed"
    waiting = sweep.total - len(sweep.jobs) + sweep.count("waiting")
    line += "".join(f", {n} {kind}" for n, kind in ((stopped, "stopped"), (waiting, "waiting")) if n)
    if (best := sweep.best) is not None:
        line += f"; best {sweep.objective} {best.score:.4g} ({best.name})"
    return f"{line}; about {format_duration(sweep.left)} left" if sweep.left else line


def job_line(job: JobProgress, objective: str) -> str:
    if job.status in ("crashed", "unreadable"):
        return f"{job.name}: {job.status}: {shorten(job.error, MAX_ERROR) or 'no error was recorded'}"
    score = f", {objective} {job.score:.4g}" if job.score is not None else ""
    return f"{job.name}: {job.status}{score}" + (f", {format_duration(job.seconds)}" if job.seconds else "")


def shorten(text: str, length: int) -> str:
    """Return a text in one line of at most `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def format_duration(seconds: float) -> str:
    """Format a duration as `40 s`, `3 min` or `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
