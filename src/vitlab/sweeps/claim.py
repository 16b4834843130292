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

from vitlab.config.schema import Node
from vitlab.distributed import launch, signals
from vitlab.runs import folder, lock
from vitlab.storage import atomic
from vitlab.sweeps import ledger

POLL = 1.0  # seconds between two looks at what others do

log = logging.getLogger(__name__)


def run_job_once(run_dir: Path, config: Node, start: Callable[[Node], None], *, waits: bool) -> None:
    """Does what is left of a job of a sweep: nothing, or `start(config)`, which goes on where it was cut off.

    One that another process runs is passed over, or with `waits` waited for. Raises `JobFailed` when it fails, or has
    failed too often to be tried again, and ends the process where the sweep was cancelled.
    """
    with ExitStack() as stack:
        while True:
            exit_if_cancelled(run_dir.parent)
            try:
                stack.enter_context(lock.run_lock(run_dir, "job"))
                if lock.is_held(run_dir, ["rank0"]):  # of a launcher that was killed: its rank trains on
                    raise lock.RunInUse(f"{run_dir} is being trained in by {lock.owner(folder.read_results(run_dir))}")
                break
            except lock.RunInUse as error:
                stack.close()
                if not waits:
                    print_line(f"{error}: passed over for now")
                    return
            time.sleep(POLL)
        if (attempts := record_start(run_dir, config)) is None:
            return
        try:
            start(config)
        finally:
            record_end(run_dir, attempts)


def record_start(run_dir: Path, config: Node) -> list[Node] | None:
    """Notes a start in `job.json`, and returns all of the job's; None where nothing is left to do."""
    results = folder.read_results(run_dir)
    status, attempts = ledger.job_status(run_dir, held=True), ledger.read_attempts(run_dir)
    if status in ledger.DONE:
        print_line(f"{run_dir.name}: {status} already")
        return None
    failures = [attempt["error"] for attempt in attempts if "error" in attempt]
    if len(failures) > config["max_failures_per_job"]:
        times = f"{len(failures)} time{'s' if len(failures) > 1 else ''}"
        remedy = f"max_failures_per_job={len(failures)} tries it again"
        print_line(reason := f"{run_dir.name}: left out, it has failed {times}: {failures[-1]}; {remedy}")
        raise launch.JobFailed(reason)
    if status != "waiting":
        again = "tried again" if status == "crashed" else "gone on with"
        print_line(f"{run_dir.name}: {again} (it was {status}; start {len(attempts) + 1})")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    attempts.append({"started": now, "host": platform.node(), "process": os.getpid()})
    write_attempts(run_dir, attempts)
    # what the last start said of its end isn't said of this one
    record = {k: v for k, v in results.items() if k != "error"}
    record |= {"status": "running", "host": platform.node(), "process": os.getpid()}
    atomic.atomic_write(run_dir / folder.RESULTS, json.dumps(record, indent=2))
    config["resume"] = "auto"
    folder.write_config(run_dir, config)
    return attempts


def record_end(run_dir: Path, attempts: list[Node]) -> None:
    """Notes how a start has ended. What fails after its launcher was killed isn't noted: it was cut off."""
    results = folder.read_results(run_dir)
    if results.get("status") == "crashed":
        attempts[-1]["error"] = results.get("error", "unknown")
        write_attempts(run_dir, attempts)
    if results.get("status") in ("preempted", "interrupted") and ledger.cancelled_problem(run_dir.parent):
        atomic.atomic_write(run_dir / folder.RESULTS, json.dumps({**results, "status": "cancelled"}, indent=2))


def write_attempts(run_dir: Path, attempts: list[Node]) -> None:
    atomic.atomic_write(run_dir / ledger.JOB, json.dumps({"attempts": attempts}, indent=1))


def exit_if_cancelled(sweep: Path) -> None:
    """Ends the process where its sweep was cancelled: as Ctrl-C does, since nobody wants it started again."""
    if problem := ledger.cancelled_problem(sweep):
        print_line(problem)
        sys.exit(signals.STATUS["interrupted"])


def print_line(line: str) -> None:
    """A line on the console, also from a launcher's worker, where nobody set up a log."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def watch_for_cancel(run_dir: Path, config: Node) -> Iterator[None]:
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
