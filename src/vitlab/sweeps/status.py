"""How far a sweep is, at a glance: cheap enough to look every second, whoever runs its jobs, and wherever.

Nothing is locked and little is read: the ledger's list, `results.json` of the jobs that aren't done yet, and the last
lines of `metrics.csv` of those that run. A job's folder says all of it, so any launcher's jobs are seen.
"""

import csv
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vitlab.runs import lock
from vitlab.runs.folder import read_config, read_results
from vitlab.sweeps import ledger
from vitlab.sweeps.ledger import Direction, Status

TAIL = 4096  # bytes at the end of metrics.csv that are read
ERROR = 120  # characters of an error in a line; results.json has all of it
STOPPED: tuple[Status, ...] = ("preempted", "interrupted", "cancelled")  # saved, and gone on with by the same command


@dataclass(frozen=True)
class JobProgress:
    """Where a job is: of 1 what is `done`, its latest (when finished: its best) score, and why it failed."""

    name: str
    status: Status
    done: float = 0.0
    epochs: str = ""  # 7/12
    score: float | None = None
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True)
class SweepStatus:
    """A sweep at one moment. `total` may be more than the jobs that are known; `left`: seconds, if they can be told."""

    name: str
    objective: str
    direction: Direction
    places: list[JobProgress]
    total: int
    left: float | None

    def count(self, *statuses: Status) -> int:
        return sum(place.status in statuses for place in self.places)

    @property
    def ended(self) -> int:
        return self.count(*ledger.DONE)

    @property
    def best(self) -> JobProgress | None:
        """The finished job with the best score."""
        scored = [
            (place.score, place) for place in self.places if place.status == "finished" and place.score is not None
        ]
        if not scored:
            return None
        return (min if self.direction == "min" else max)(scored, key=lambda pair: pair[0])[1]


class StatusPoller:
    """Looks at a sweep's folder again and again, and remembers what can't change any more.

    `planned`: how many jobs there will be, where the ledger's list isn't complete before the end.
    """

    def __init__(self, folder: Path, *, planned: int = 0) -> None:
        self.folder, self.planned = folder, planned
        self.ended: dict[str, JobProgress] = {}
        self.epochs: dict[Path, int] = {}
        self.began = time.time()
        self.first: float | None = None  # jobs' worth of work that was done when the first look was taken

    def look(self) -> SweepStatus | None:
        """The sweep as it stands; None where nothing is written of it yet."""
        head = ledger.read_json(self.folder / ledger.SWEEP)
        if not head.get("objectives"):
            return None
        objective, direction = next(iter(head["objectives"].items()))
        varies = ledger.varying_keys(head)
        places = []
        for key, entry in head.get("jobs", {}).items():
            if key not in self.ended:
                chosen = {name: entry["settings"][name] for name in varies if name in entry["settings"]}
                name = " ".join(f"{name}={value}" for name, value in chosen.items()) or key
                place = self.place(self.folder / entry["folder"], name, objective)
                if place.status not in ledger.DONE:
                    places.append(place)
                    continue
                self.ended[key] = place
            places.append(self.ended[key])
        total = max(len(places), self.planned)
        return SweepStatus(self.folder.name, objective, direction, places, total, self.left(places, total))

    def place(self, folder: Path, name: str, objective: str) -> JobProgress:
        """Where a job is, from what its folder holds."""
        results = read_results(folder)
        status: Status = results.get("status", "waiting")
        here = results.get("host") == platform.node()
        if status == "running" and here and not lock.pid_alive(results.get("process")):
            status = "interrupted"  # killed: nobody could write it down
        seconds = results.get("seconds")
        if status in ledger.DONE:
            return JobProgress(name, status, 1.0, "", finite_score(results.get(objective)), seconds)
        epochs, done, score = self.trained(folder, objective) if status != "waiting" else ("", 0.0, None)
        return JobProgress(name, status, done, epochs, score, seconds, str(results.get("error", "")))

    def trained(self, folder: Path, objective: str) -> tuple[str, float, float | None]:
        """Epochs done of all, as told and as a share, and the latest score, of a job that isn't done."""
        if folder not in self.epochs:
            with suppress(OSError, AssertionError, yaml.YAMLError):
                epochs = (read_config(folder).get("trainer") or {}).get("max_epochs")
                self.epochs[folder] = epochs if isinstance(epochs, int) else 0
        epoch, score = 0, None  # the epoch counts from 1
        for row in read_last_rows(folder / "metrics.csv"):
            with suppress(ValueError, TypeError):
                epoch = int(float(row["epoch"]))
            score = finite_score(row.get(objective)) or score
        every = self.epochs.get(folder, 0)
        if epoch < 1:
            return f"0/{every}" if every > 0 else "", 0.0, score
        return (f"{epoch}/{every}", min(1.0, (epoch - 1) / every), score) if every > 0 else (f"{epoch}", 0.0, score)

    def left(self, places: list[JobProgress], total: int) -> float | None:
        """Seconds until all is done, if it goes on as it went since the first look; None before there is a measure."""
        work = sum(place.done for place in places)
        if self.first is None:
            self.first = work
        gained = work - self.first
        open_ = total - len(places) + sum(1 - p.done for p in places if p.status not in (*ledger.DONE, "crashed"))
        elapsed = time.time() - self.began
        return elapsed * open_ / gained if gained > 0.1 and elapsed > 1 else None


def finite_score(value: Any) -> float | None:
    """A finite number, from JSON or a table's cell."""
    with suppress(TypeError, ValueError):
        number = float(value)
        return number if abs(number) < float("inf") else None
    return None


def read_last_rows(file: Path) -> Iterator[dict[str, str]]:
    """The last whole rows of a table."""
    with suppress(OSError), file.open("rb") as content:
        header = content.readline().decode()
        begin = content.tell()
        end = content.seek(0, 2)
        content.seek(max(begin, end - TAIL))
        text = content.read().decode(errors="replace")
        lines = text.splitlines()[1 if end - TAIL > begin else 0 :]
        columns = next(csv.reader([header]), [])
        for line in lines:
            cells = next(csv.reader([line]), [])
            if len(cells) == len(columns):
                yield dict(zip(columns, cells, strict=True))


# ---------------------------------------------------------------------------------------------------------- in words


def status_line(standing: SweepStatus) -> str:
    """A sweep in a line, for a log."""
    parts = [
        f"{standing.ended} of {standing.total} jobs done",
        f"{standing.count('running')} running",
        f"{standing.count('crashed')} failed",
    ]
    if stopped := standing.count(*STOPPED):
        parts.append(f"{stopped} stopped")
    line = f"sweep {standing.name}: {', '.join(parts)}"
    if (best := standing.best) is not None:
        line += f"; best {standing.objective} {best.score:.4g} ({best.name})"
    return f"{line}; about {format_duration(standing.left)} left" if standing.left else line


def job_line(place: JobProgress, objective: str) -> str:
    """How a job ended, in a line."""
    if place.status == "crashed":
        error = " ".join(place.error.split()) or "it told no error"
        return f"{place.name}: crashed: {error if len(error) <= ERROR else f'{error[: ERROR - 3]}...'}"
    score = f", {objective} {place.score:.4g}" if place.score is not None else ""
    return f"{place.name}: {place.status}{score}" + (f", {format_duration(place.seconds)}" if place.seconds else "")


def format_duration(seconds: float | None) -> str:
    """`40 s`, `3 min`, `2.5 h`, as one says it."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
