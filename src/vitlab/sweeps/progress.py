"""A sweep's progress: in a terminal a table below the jobs' output, in a log a line at each change.

A thread reads the sweep's folder once a second. In a terminal file descriptors 1 and 2, which all local processes
inherit, become a pipe, so the jobs' output can be printed above the table.
"""

import logging
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from vitlab.config.printable import printable
from vitlab.runs.folder import RESULTS
from vitlab.sweeps import ledger
from vitlab.sweeps.report import table
from vitlab.sweeps.status import STOPPED, StatusPoller, SweepStatus, job_line, status_line

if TYPE_CHECKING:
    from rich.console import RenderableType

INTERVAL = 1.0  # seconds between two polls
QUIET = 300.0  # seconds after which a log gets a line although nothing has changed
MAX_ROWS = 8  # jobs of a kind in the table
REPORT = "report"  # the folder within the sweep's

log = logging.getLogger(__name__)
_progress: "ProgressThread | None" = None  # of this process; not in the callback, which launchers pickle


class Progress(Callback):
    """Hydra callback that shows a sweep while it runs, and writes its report at the end.

    Args:
        table: Show a table in a terminal; False: lines alone.
        report: Write SWEEP/report/ at the end.
    """

    def __init__(self, *, table: bool = True, report: bool = True) -> None:
        self.table, self.report = table, report

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        planned = config.hydra.sweeper.get("n_trials") or 0
        start_progress(Path(config.hydra.sweep.dir).absolute(), planned=planned, table=self.table, report=self.report)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        stop_progress()


def start_progress(folder: Path, *, planned: int = 0, table: bool = True, report: bool = True) -> None:
    global _progress
    stop_progress()
    terminal = table and sys.stdout.isatty() and sys.stderr.isatty()
    _progress = ProgressThread(StatusPoller(folder, planned=planned), terminal=terminal, report=report)
    _progress.start()


def stop_progress() -> None:
    """Show the last status, write the report, and stop; do nothing if nothing was started."""
    global _progress
    progress, _progress = _progress, None
    if progress is not None:
        progress.stop()


class ProgressThread(threading.Thread):
    """Polls a sweep's status and shows it."""

    def __init__(self, poller: StatusPoller, *, terminal: bool, report: bool) -> None:
        super().__init__(name="progress", daemon=True)
        self.poller, self.report = poller, report
        self.screen = TerminalScreen() if terminal else None
        self.over = threading.Event()
        self.ended: dict[str, str] | None = None  # jobs that have ended, by name; None before the first poll
        self.last_line, self.last_time = "", time.monotonic()

    def run(self) -> None:
        while not self.over.wait(INTERVAL):
            self.update()

    def update(self, *, last: bool = False) -> None:
        """Poll and show the status. An error here must not end the sweep."""
        try:
            if (status := self.poller.poll()) is None:
                return
            if self.screen is not None:
                self.screen.live.update(status_table(status), refresh=True)
            else:
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
        if self.screen is not None:
            self.screen.stop()
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


class TerminalScreen:
    """A table at the end of the terminal; what is written to file descriptors 1 and 2 is printed above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        flush_output()
        self.saved = [os.dup(1), os.dup(2)]
        console = Console(file=os.fdopen(os.dup(1), "w"), force_terminal=True, highlight=False)
        self.live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        read, write = os.pipe()
        os.dup2(write, 1)
        os.dup2(write, 2)
        os.close(write)
        self.live.start()
        console.show_cursor(True)  # a kill would leave the terminal without one
        self.reader = threading.Thread(target=self.forward_lines, args=(read,), name="lines", daemon=True)
        self.reader.start()

    def forward_lines(self, descriptor: int) -> None:
        """Print the jobs' lines above the table until the last process that may write has ended."""
        from rich.text import Text

        with os.fdopen(descriptor, errors="replace") as lines:
            for line in lines:  # of an overwritten line (a progress bar) only its last state
                self.live.console.print(Text.from_ansi(line.rstrip("\n").rsplit("\r", 1)[-1]), soft_wrap=True)

    def stop(self) -> None:
        """Restore the terminal, after the lines that jobs have written before."""
        flush_output()
        for descriptor, saved in zip((1, 2), self.saved, strict=True):
            os.dup2(saved, descriptor)
            os.close(saved)
        self.reader.join(timeout=0.5)  # a launcher's workers may keep the pipe open
        self.live.stop()


def flush_output() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def status_table(status: SweepStatus) -> "RenderableType":
    """Return the lines of a log for the sweep and its failed jobs, with a row for each running job between them."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    objective, _ = table.first_objective(status.sweep)
    running, failed = ([job for job in status.sweep.jobs if job.status == kind] for kind in ("running", "crashed"))
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column(ratio=1)  # the only one that shrinks
    for justify in ("left", "right", "right"):
        rows.add_column(no_wrap=True, justify=justify)
    for job in running[:MAX_ROWS]:
        name = Text(job.name, no_wrap=True, overflow="ellipsis")
        done, epochs, score = status.progress[job.id]
        bar = ProgressBar(total=1.0, completed=done, width=12)
        shown = f"{objective} {score:.4g}" if score is not None else ""
        rows.add_row(Text("running", "cyan"), name, bar, f"epoch {epochs}" if epochs else "", shown)
    errors = [job_line(job, objective) for job in failed[:MAX_ROWS]]
    lines = [Text(line, "red", no_wrap=True, overflow="ellipsis") for line in errors]
    return Group(Text(), Text(status_line(status), "bold"), *([rows] if rows.row_count else []), *lines)
