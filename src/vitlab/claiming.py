"""A job's turn in its sweep: started, gone on with, tried again, passed over, or left as it is.

Whichever process holds the lock of a job's folder does the job; it is the only one that writes there. So what a job
needs is decided under the lock, in the process that will run it, under any launcher.
"""

import json
import logging
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from vitlab import launch, ledger, runs, stopping
from vitlab.config.schema import Node

POLL = 1.0  # seconds between two looks at what others do

log = logging.getLogger(__name__)


def take_turn(run_dir: Path, config: Node, start: Callable[[Node], None], *, waits: bool) -> None:
    """Does what is left of a job of a sweep: nothing, or `start(config)`, which goes on where it was cut off.

    One that another process runs is passed over, or with `waits` waited for. Raises `JobFailed` when it fails, or has
    failed too often to be tried again, and ends the process where the sweep was cancelled.
    """
    with ExitStack() as stack:
        while True:
            leave_if_cancelled(run_dir.parent)
            try:
                stack.enter_context(runs.held(run_dir, "job"))
                if runs.is_held(run_dir, ["rank0"]):  # of a launcher that was killed: its rank trains on
                    raise runs.Occupied(f"{run_dir} is being trained in by {runs.holder(runs.read_results(run_dir))}")
                break
            except runs.Occupied as error:
                stack.close()
                if not waits:
                    tell(f"{error}: passed over for now")
                    return
            time.sleep(POLL)
        if (attempts := begun(run_dir, config)) is None:
            return
        try:
            start(config)
        finally:
            ended(run_dir, attempts)


def begun(run_dir: Path, config: Node) -> list[Node] | None:
    """Notes a start in `job.json`, and returns all of the job's; None where nothing is left to do."""
    results = runs.read_results(run_dir)
    status, attempts = ledger.job_status(run_dir, held=True), ledger.attempts(run_dir)
    if status in ledger.DONE:
        tell(f"{run_dir.name}: {status} already")
        return None
    failures = [attempt["error"] for attempt in attempts if "error" in attempt]
    if len(failures) > config["retries"]:
        times = f"{len(failures)} time{'s' if len(failures) > 1 else ''}"
        remedy = f"retries={len(failures)} tries it again"
        tell(reason := f"{run_dir.name}: left out, it has failed {times}: {failures[-1]}; {remedy}")
        raise launch.JobFailed(reason)
    if status != "waiting":
        again = "tried again" if status == "crashed" else "gone on with"
        tell(f"{run_dir.name}: {again} (it was {status}; start {len(attempts) + 1})")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    attempts.append({"started": now, "host": platform.node(), "process": os.getpid()})
    write_attempts(run_dir, attempts)
    # what the last start said of its end isn't said of this one
    record = {k: v for k, v in results.items() if k != "error"}
    record |= {"status": "running", "host": platform.node(), "process": os.getpid()}
    runs.replace(run_dir / runs.RESULTS, json.dumps(record, indent=2))
    config["resume"] = "auto"
    runs.write_config(run_dir, config)
    return attempts


def ended(run_dir: Path, attempts: list[Node]) -> None:
    """Notes how a start has ended. What fails after its launcher was killed isn't noted: it was cut off."""
    results = runs.read_results(run_dir)
    if results.get("status") == "crashed":
        attempts[-1]["error"] = results.get("error", "unknown")
        write_attempts(run_dir, attempts)
    if results.get("status") in ("preempted", "interrupted") and ledger.cancelled_problem(run_dir.parent):
        runs.replace(run_dir / runs.RESULTS, json.dumps({**results, "status": "cancelled"}, indent=2))


def write_attempts(run_dir: Path, attempts: list[Node]) -> None:
    runs.replace(run_dir / ledger.JOB, json.dumps({"attempts": attempts}, indent=1))


def leave_if_cancelled(sweep: Path) -> None:
    """Ends the process where its sweep was cancelled: as Ctrl-C does, since nobody wants it started again."""
    if problem := ledger.cancelled_problem(sweep):
        tell(problem)
        sys.exit(stopping.STATUS["interrupted"])


def tell(line: str) -> None:
    """A line on the console, also from a launcher's worker, where nobody set up a log."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def cancel_heard(run_dir: Path, config: Node) -> Iterator[None]:
    """In each process of a sweep's job: while the block runs, a sweep that is cancelled is heard as Ctrl-C is."""
    if not config.get("sweep"):
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL):
            if (run_dir.parent / ledger.CANCELLED).exists():
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=watch, name="cancel", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
