"""A sweep's progress: a line at each change, from a thread that reads the sweep's folder once a second."""

import logging
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from vitlab.config.printable import printable
from vitlab.runs.folder import RESULTS
from vitlab.sweeps import ledger
from vitlab.sweeps.report import table
from vitlab.sweeps.status import STOPPED, StatusPoller, SweepStatus, job_line, status_line

INTERVAL = 1.0  # seconds between two polls
QUIET = 300.0  # seconds after which a log gets a line although nothing has changed
REPORT = "report"  # the folder within the sweep's

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
    _progress = ProgressThread(StatusPoller(folder, planned=planned), report=report)
    _progress.start()


def stop_progress() -> None:
    """Show the last status, write the report, and stop; do nothing if nothing was started."""
    global _progress
    progress, _progress = _progress, None
    if progress is not None:
        progress.stop()


class ProgressThread(threading.Thread):
    """Polls a sweep's status and shows it."""

    def __init__(self, poller: StatusPoller, *, report: bool) -> None:
        super().__init__(name="progress", daemon=True)
        self.poller, self.report = poller, report
        self.over = threading.Event()
        self.ended: dict[str, str] | None = None  # jobs that have ended, by name; None before the first poll
        self.last_line, self.last_time = "", time.monotonic()

    def run(self) -> None:
        while not self.over.wait(INTERVAL):
            self.update()

    def update(self, *, last: bool = False) -> None:
        """Poll and show the status. An error here must not end the sweep."""
        try:
            if (status := self.poller.poll()) is not None:
                self.print_changes(status, last=last)
        except Exception as error:
            log.debug("progress: %s", error, exc_info=error)

    def print_changes(self, status: SweepStatus, *, last: bool) -> None:
        """Print a line for each job that has ended since the last poll, and one for the sweep."""
        ended = [job for job in status.sweep.jobs if job.status in (*ledger.DONE, "crashed", *STOPPED)]
        before, self.ended = self.ended, {job.name: job.status for job in ended}
        # jobs that had ended before this process began are no news
        new = [] if before is None else [job for job in ended if before.get(job.name) != job.status]
        objective, _ = table.first_objective(status.sweep)
        lines = [*(job_line(job, objective) for job in new), status_line(status)]
        if new or (last and lines[-1] != self.last_line) or time.monotonic() - self.last_time > QUIET:
            self.last_line, self.last_time = lines[-1], time.monotonic()
            print(printable("\n".join(lines)), file=sys.stderr, flush=True)

    def stop(self) -> None:
        self.over.set()
        self.join()
        self.update(last=True)
        folder = self.poller.folder
        if self.report and self.poller.poll() is not None and not is_current(folder):
            from vitlab.sweeps.report.page import write_report

            try:
                line = f"report: {write_report(ledger.read_sweep(folder), folder / REPORT)}"
            except Exception as error:  # must not end the sweep
                line = f"the report can't be written: {type(error).__name__}: {error}"
            print(printable(line), file=sys.stderr, flush=True)


def is_current(sweep: Path) -> bool:
    """Whether no job of a sweep has changed since its report was written."""
    with suppress(OSError):
        page = sweep / REPORT / "index.html"
        written = page.stat().st_mtime if page.is_file() else 0.0
        return all(file.stat().st_mtime < written for file in [sweep / ledger.SWEEP, *sweep.glob(f"*/{RESULTS}")])
    return False
