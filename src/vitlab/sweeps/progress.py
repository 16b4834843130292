"""A sweep's progress in the terminal: one table that stays below the jobs' lines; in a log, a line where one says more.

Hydra's callback `Progress` starts it in the process that started the sweep, which launches and waits; a thread looks at
the sweep's folder once a second. So it is the same under any launcher.

In a terminal the jobs' own output has to pass by the table: file descriptors 1 and 2, which all local processes
inherit, become a pipe, and what comes out of it is printed above the table.
"""

import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from vitlab.sweeps import ledger
from vitlab.sweeps.status import STOPPED, JobProgress, StatusPoller, SweepStatus, format_duration, job_line, status_line

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

EVERY = 1.0  # seconds between two looks
QUIET = 300.0  # seconds after which a log gets a line although nothing has ended
ROWS = 8  # jobs that the table shows of a kind
WORD = 11  # characters of the longest status
REPORT = "report"  # the folder within the sweep's

log = logging.getLogger(__name__)
_watch: "ProgressThread | None" = None  # of this process; not in the callback, which launchers send to their workers


class Progress(Callback):
    """Hydra's callback: shows a sweep while it runs, and writes its report at the end (`report=false` doesn't)."""

    def __init__(self, *, table: bool = True, report: bool = True) -> None:
        self.table, self.report = table, report

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        planned = config.hydra.sweeper.get("n_trials") or 0
        start_progress(Path(config.hydra.sweep.dir).absolute(), planned=planned, table=self.table, report=self.report)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        stop_progress()


def start_progress(folder: Path, *, planned: int = 0, table: bool = True, report: bool = True) -> None:
    """Shows the sweep in a folder from now on, until `end`."""
    global _watch
    stop_progress()
    terminal = table and sys.stdout.isatty() and sys.stderr.isatty()
    _watch = ProgressThread(StatusPoller(folder, planned=planned), terminal=terminal, report=report)
    _watch.start()


def stop_progress() -> None:
    """Ends what `begin` began, if anything: the last state is shown, and the report written."""
    global _watch
    watch, _watch = _watch, None
    if watch is not None:
        watch.end()


class ProgressThread:
    """The thread that looks and tells."""

    def __init__(self, lookout: StatusPoller, *, terminal: bool, report: bool) -> None:
        self.lookout, self.report = lookout, report
        self.screen = TerminalScreen() if terminal else None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, name="progress", daemon=True)
        self.known: dict[str, str] = {}
        self.looked = False
        self.line = ""  # said last
        self.said = time.monotonic()

    def start(self) -> None:
        if self.screen is not None:
            self.screen.start()
        self.thread.start()

    def run(self) -> None:
        while not self.over.wait(EVERY):
            self.look()

    def look(self, *, last: bool = False) -> None:
        """One look, shown. Nothing that goes wrong here may end a sweep."""
        try:
            standing = self.lookout.look()
            if standing is None:
                return
            if self.screen is not None:
                self.screen.show(standing)
            else:
                self.tell(standing, last=last)
        except Exception as error:
            log.debug("progress: %s", error, exc_info=error)

    def tell(self, standing: SweepStatus, *, last: bool) -> None:
        """Lines for a log: what has ended since the last look, and then where the sweep is."""
        ends = [place for place in standing.places if place.status in (*ledger.DONE, "crashed", *STOPPED)]
        new = [place for place in ends if self.known.get(place.name) != place.status]
        # what had ended before this process began is no news
        lines = [job_line(place, standing.objective) for place in new] if self.looked else []
        self.known = {place.name: place.status for place in ends}
        self.looked = True
        lines.append(status_line(standing))
        if len(lines) > 1 or (last and lines[0] != self.line) or time.monotonic() - self.said > QUIET:
            self.said, self.line = time.monotonic(), lines[-1]
            print(*lines, sep="\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        self.over.set()
        self.thread.join()
        self.look(last=True)
        if self.screen is not None:
            self.screen.stop()
        if self.report and self.lookout.look() is not None:
            write_report_safely(self.lookout.folder)


def write_report_safely(folder: Path) -> None:
    """Writes a sweep's report, and says where; that it can't be written is told and ends nothing."""
    from vitlab.sweeps.report.page import write_report

    try:
        page = write_report(ledger.read_sweep(folder), folder / REPORT)
        print(f"report: {page}", file=sys.stderr, flush=True)
    except Exception as error:
        print(f"the report can't be written: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------ in a terminal


class TerminalScreen:
    """The terminal: the table at its end, and above it whatever is written to file descriptors 1 and 2 meanwhile."""

    def __init__(self) -> None:
        self.live: Live | None = None
        self.kept: list[int] = []
        self.out: IO[str] | None = None

    def start(self) -> None:
        """Takes the terminal."""
        from rich.console import Console
        from rich.live import Live

        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.kept = [os.dup(1), os.dup(2)]
        self.out = os.fdopen(os.dup(1), "w")
        console = Console(file=self.out, force_terminal=True, highlight=False)
        self.live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        read, write = os.pipe()
        for descriptor in (1, 2):
            os.dup2(write, descriptor)
        os.close(write)
        self.live.start()
        console.show_cursor(True)  # a kill would leave the terminal without one
        self.reader = threading.Thread(target=self.pass_on, args=(read,), name="lines", daemon=True)
        self.reader.start()

    def pass_on(self, descriptor: int) -> None:
        """Prints the jobs' lines above the table, until the last process that may write has ended."""
        from rich.text import Text

        assert self.live is not None
        with os.fdopen(descriptor, errors="replace") as lines:
            for line in lines:
                # of a line that was written over (a progress bar) what was last to be seen
                self.live.console.print(Text.from_ansi(line.rstrip("\n").rsplit("\r", 1)[-1]), soft_wrap=True)

    def show(self, standing: SweepStatus) -> None:
        """Draws the table anew."""
        assert self.live is not None
        self.live.update(status_table(standing), refresh=True)

    def stop(self) -> None:
        """Gives the terminal back. What jobs have written before is shown first."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor, kept in zip((1, 2), self.kept, strict=True):
            os.dup2(kept, descriptor)
            os.close(kept)
        self.reader.join(timeout=0.5)  # a launcher's workers may keep the pipe open
        assert self.live is not None
        self.live.stop()


def status_table(standing: SweepStatus) -> "RenderableType":
    """The whole state, as few lines as tell it: counts, what runs, what failed, the best, and the time left."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Text.assemble((standing.name, "bold"), "  ", (f"{standing.ended} of {standing.total} done", "green"))
    for words, style, number in (
        ("running", "cyan", standing.count("running")),
        ("waiting", "dim", standing.total - len(standing.places) + standing.count("waiting")),
        ("failed", "red", standing.count("crashed")),
        ("stopped", "yellow", standing.count(*STOPPED)),
    ):
        if number:
            head.append(f"  {number} {words}", style)
    if standing.left:
        head.append(f"  about {format_duration(standing.left)} left", "dim")
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True, min_width=WORD)
    rows.add_column(ratio=1)  # the only one that gives way
    rows.add_column(no_wrap=True)
    rows.add_column(no_wrap=True, justify="right")
    rows.add_column(no_wrap=True, justify="right")

    def score(place: JobProgress) -> str:
        return f"{standing.objective} {place.score:.4g}" if place.score is not None else ""

    def cut(name: str) -> Text:
        return Text(name, no_wrap=True, overflow="ellipsis")

    running = [place for place in standing.places if place.status == "running"]
    for place in running[:ROWS]:
        bar = ProgressBar(total=1.0, completed=place.done, width=12)
        epochs = f"epoch {place.epochs}" if place.epochs else ""
        rows.add_row(Text("running", "cyan"), cut(place.name), bar, epochs, score(place))
    if (best := standing.best) is not None:
        rows.add_row(Text("best", "green"), cut(best.name), "", "", Text(score(best), "bold"))
    failed = [place for place in standing.places if place.status == "crashed"]
    # lines of their own: a long error would take the room of the columns
    lines = [
        Text.assemble((place.status.ljust(WORD + 2), "red"), f"{place.name}  {' '.join(place.error.split())}")
        for place in failed[:ROWS]
    ]
    for kind, count in (("running", len(running)), ("failed", len(failed))):
        if count > ROWS:
            lines.append(Text(f"{' ' * (WORD + 2)}and {count - ROWS} more {kind}", "dim"))
    for line in (head, *lines):
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(Text(), head, *([rows] if rows.row_count else []), *lines)
