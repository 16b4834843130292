"""A sweep's progress: a line at each change, from a thread that reads the sweep's folder once a second.

Read are the ledger, locks and `results.json` of the jobs that are not done.
"""

import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from vitlab.config.printable import printable
from vitlab.sweeps import ledger
from vitlab.sweeps.ledger import Job, Status, Sweep
from vitlab.sweeps.report import table

INTERVAL = 1.0  # seconds between two polls
QUIET = 300.0  # seconds after which a log gets a line although nothing has changed
MAX_ERROR = 120  # characters of an error in a line; results.json has all of it
# the same command resumes them
STOPPED: tuple[Status, ...] = ("stopped", "preempted", "interrupted", "cancelled", "unreadable")

log = logging.getLogger(__name__)
_progress: "ProgressThread | None" = None  # of this process; not in the callback, which launchers pickle


class Progress(Callback):
    """Hydra callback that shows a sweep while it runs, and writes its report at the end.

    Args:
        report: Write SWEEP/report/ at the end.
    """

    def __init__(self, *, report: bool = True) -> None:
        self.report = report

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        planned = config.hydra.sweeper.get("n_trials") or 0
        start_progress(Path(config.hydra.sweep.dir).absolute(), planned=planned, report=self.report)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        stop_progress()


def start_progress(folder: Path, *, planned: int = 0, report: bool = True) -> None:
    global _progress
    stop_progress()
    _progress = ProgressThread(folder, planned=planned, report=report)
    _progress.start()


def stop_progress() -> None:
    """Show the last status, write the report, and stop; do nothing if nothing was started."""
    global _progress
    progress, _progress = _progress, None
    if progress is not None:
        progress.stop()


class ProgressThread(threading.Thread):
    """Polls a sweep's status and shows it; `planned` is its number of jobs if the ledger lists them as they start."""

    def __init__(self, folder: Path, *, planned: int = 0, report: bool = True) -> None:
        super().__init__(name="progress", daemon=True)
        self.folder, self.planned, self.report = folder, planned, report
        self.over = threading.Event()
        self.done: dict[str, Job] = {}
        self.done_before: int | None = None  # jobs, at the first poll
        self.begin = time.time()
        self.left: float | None = None  # seconds, at the speed since the first poll; None before a job is done
        self.ended: dict[str, str] | None = None  # jobs that have ended, by name; None before the first poll
        self.last_line, self.last_time = "", time.monotonic()

    def poll(self) -> Sweep | None:
        """Return the sweep; None before the ledger is written."""
        head = ledger.read_head(self.folder, warn=False)
        if not (objectives := head.get("objectives")):
            return None
        varies, entries = ledger.varying_keys(head), head.get("jobs", {})
        jobs = [self.done.get(key) or ledger.read_job(self.folder, key, entries[key], varies) for key in entries]
        self.done = {job.id: job for job in jobs if job.status in ledger.DONE}
        total = max(len(jobs), self.planned, head.get("total") or 0)
        if self.done_before is None:
            self.done_before = len(self.done)
        gained, ended = len(self.done) - self.done_before, count(jobs, *ledger.DONE, "crashed", "stopped")
        self.left = (time.time() - self.begin) * (total - ended) / gained if gained > 0 else None
        return Sweep(self.folder, self.folder.name, "", objectives, jobs, total)

    def run(self) -> None:
        while not self.over.wait(INTERVAL):
            self.update()

    def update(self, *, last: bool = False) -> None:
        """Poll and show the status. An error here must not end the sweep."""
        try:
            if (sweep := self.poll()) is not None:
                self.print_changes(sweep, last=last)
        except Exception as error:
            log.debug("progress: %s", error, exc_info=error)

    def print_changes(self, sweep: Sweep, *, last: bool) -> None:
        """Print a line for each job that has ended since the last poll, and one for the sweep."""
        ended = [job for job in sweep.jobs if job.status in (*ledger.DONE, "crashed", *STOPPED)]
        before, self.ended = self.ended, {job.name: job.status for job in ended}
        # jobs that had ended before this process began are no news
        new = [] if before is None else [job for job in ended if before.get(job.name) != job.status]
        objective, _ = table.first_objective(sweep)
        lines = [*(job_line(job, objective) for job in new), status_line(sweep, self.left)]
        if new or (last and lines[-1] != self.last_line) or time.monotonic() - self.last_time > QUIET:
            self.last_line, self.last_time = lines[-1], time.monotonic()
            print(printable("\n".join(lines)), file=sys.stderr, flush=True)

    def stop(self) -> None:
        self.over.set()
        self.join()
        self.update(last=True)
        folder = self.folder
        if self.report and (folder / ledger.SWEEP).is_file():
            from vitlab.sweeps.report.page import write_report

            try:
                line = f"report: {write_report(ledger.read_sweep(folder), folder / 'report')}"
            except Exception as error:  # must not end the sweep
                line = f"the report can't be written: {type(error).__name__}: {error}"
            print(printable(line), file=sys.stderr, flush=True)


def count(jobs: list[Job], *statuses: Status) -> int:
    return sum(job.status in statuses for job in jobs)


def status_line(sweep: Sweep, left: float | None) -> str:
    """Format the state of a sweep of which `left` seconds remain, as far as is known."""
    jobs, total = sweep.jobs, sweep.total
    done, running, failed = count(jobs, *ledger.DONE), count(jobs, "running"), count(jobs, "crashed")
    line = f"sweep {sweep.name}: {done} of {total} jobs done, {running} running, {failed} failed"
    waiting, stopped = total - len(jobs) + count(jobs, "waiting"), count(jobs, *STOPPED)
    line += "".join(f", {n} {kind}" for n, kind in ((stopped, "stopped"), (waiting, "waiting")) if n)
    if (best := table.best_job(sweep)) is not None:
        objective, _ = table.first_objective(sweep)
        line += f"; best {objective} {best.results[objective]:.4g} ({best.name})"
    return f"{line}; about {format_duration(left)} left" if left else line


def job_line(job: Job, objective: str) -> str:
    if job.status in ("crashed", "unreadable"):
        error = shorten(str(job.results.get("error", "")))
        return f"{job.name}: {job.status}: {error or 'no error was recorded'}"
    score, seconds = map(table.finite_numbers(job).get, (objective, "seconds"))
    line = f"{job.name}: {job.status}" + (f", {objective} {score:.4g}" if score is not None else "")
    return f"{line}, {format_duration(seconds)}" if seconds else line


def shorten(text: str) -> str:
    """Return a text in one line of at most `MAX_ERROR` characters."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= MAX_ERROR else f"{text[: MAX_ERROR - 3]}..."


def format_duration(seconds: float) -> str:
    """Format a duration as `40 s`, `3 min` or `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
