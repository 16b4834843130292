"""Start, resume, retry or skip a job of a sweep: decided by the process that holds the lock of the job's folder."""

import json
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

from vitlab.config.printable import printable
from vitlab.config.schema import Node
from vitlab.distributed import launch, signals
from vitlab.runs import folder, lock
from vitlab.storage import atomic
from vitlab.sweeps import ledger

POLL = 1.0  # seconds between two checks of what other processes do


def run_job_once(run_dir: Path, config: Node, start: Callable[[Node], None], *, waits: bool) -> None:
    """Run a job of a sweep with `start(config)`, unless it is done or the sweep was cancelled.

    Skip a job that another process runs, or with `waits` wait for it. Raises `JobFailed` if it fails or is not retried.
    """
    with ExitStack() as stack:
        while True:
            exit_on_cancel(run_dir.parent)
            try:
                stack.enter_context(lock.run_lock(run_dir, "job"))
                if lock.is_held(run_dir, ["rank0"]):  # its launcher was killed, its rank was not
                    raise lock.RunInUse(f"{run_dir} is being trained in by {lock.owner(folder.read_results(run_dir))}")
                break
            except lock.RunInUse as error:
                stack.close()
                if not waits:
                    print_line(f"{error}: skipped for now")
                    return
            time.sleep(POLL)
        if (attempts := record_start(run_dir, config)) is None:
            return
        try:
            start(config)
        finally:
            record_end(run_dir, attempts)


def record_start(run_dir: Path, config: Node) -> list[Node] | None:
    """Record a start in `job.json`, and return all starts of the job; None if the job is done."""
    results = folder.read_results(run_dir)
    status, attempts = ledger.job_status(run_dir, locked_here=True), ledger.read_attempts(run_dir)
    if status in ledger.DONE:
        print_line(f"{run_dir.name}: {status} already")
        return None
    errors = [attempt["error"] for attempt in attempts if "error" in attempt]
    if (n := len(errors)) > config["max_failures_per_job"]:
        times = f"{n} time{'s' if n > 1 else ''}"
        reason = f"{run_dir.name}: skipped, it has failed {times}: {errors[-1]}; max_failures_per_job={n} retries it"
        print_line(reason)
        raise launch.JobFailed(reason)
    if status != "waiting":
        again = "retried" if status == "crashed" else "resumed"
        print_line(f"{run_dir.name}: {again} (it was {status}; start {len(attempts) + 1})")
    place = {"host": platform.node(), "process": os.getpid()}
    attempts.append({"started": datetime.now(UTC).isoformat(timespec="seconds"), **place})
    write_attempts(run_dir, attempts)
    results.pop("error", None)  # of the last start
    atomic.atomic_write(run_dir / folder.RESULTS, json.dumps({**results, "status": "running", **place}, indent=2))
    config["resume"] = "auto"
    folder.write_config(run_dir, config)
    return attempts


def record_end(run_dir: Path, attempts: list[Node]) -> None:
    """Record how a start ended. (If this process is killed, no failure is recorded: that was the reason.)"""
    results = folder.read_results(run_dir)
    if results.get("status") == "crashed":
        attempts[-1]["error"] = results.get("error", "unknown")
        write_attempts(run_dir, attempts)
    if results.get("status") in ("preempted", "interrupted") and ledger.cancelled_problem(run_dir.parent):
        atomic.atomic_write(run_dir / folder.RESULTS, json.dumps({**results, "status": "cancelled"}, indent=2))


def write_attempts(run_dir: Path, attempts: list[Node]) -> None:
    atomic.atomic_write(run_dir / ledger.JOB, json.dumps({"attempts": attempts}, indent=1))


def exit_on_cancel(sweep: Path) -> None:
    """Exit with the status of Ctrl-C if the sweep was cancelled: no cluster should restart it."""
    if problem := ledger.cancelled_problem(sweep):
        print_line(problem)
        sys.exit(signals.STATUS["interrupted"])


def print_line(line: str) -> None:
    """Print to stderr: a launcher's worker has no logging."""
    print(printable(line), file=sys.stderr, flush=True)


@contextmanager
def watch_for_cancel(run_dir: Path, config: Node) -> Iterator[None]:
    """Interrupt this process, as Ctrl-C does, if the sweep of its job is cancelled during the block."""
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
