"""Handle requests to stop: SIGTERM and SIGUSR1 (a cluster preempts the job), SIGINT (Ctrl-C).

Training finishes its step, saves and ends; other work is aborted, since nothing would be lost. A second signal ends the
process at once.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Literal

Outcome = Literal["preempted", "interrupted"]

# Exit statuses after a request. 75 is EX_TEMPFAIL of sysexits.h, "try again later": clusters requeue such jobs.
STATUS: dict[Outcome, int] = {"preempted": 75, "interrupted": 128 + signal.SIGINT}
SIGNALS: dict[int, Outcome] = {signal.SIGTERM: "preempted", signal.SIGUSR1: "preempted", signal.SIGINT: "interrupted"}
ECHO = 1.0  # seconds in which another signal is the same request: a cluster may signal a process and its parent


class StopRequested(BaseException):
    """The run ends on request, after saving."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome: Outcome = outcome


@dataclass
class _Request:
    """The request to this process; one instance, since signals belong to the process."""

    outcome: Outcome | None = None
    graceful: int = 0  # blocks of `graceful_shutdown`
    time: float = 0.0


_request = _Request()


def requested_outcome() -> Outcome | None:
    """The requested outcome, if any."""
    return _request.outcome


@contextmanager
def graceful_shutdown() -> Iterator[None]:
    """Within the block, only record the first signal, as `requested_outcome`; raise `StopRequested` when it ends."""
    _request.graceful += 1
    try:
        yield
    finally:
        _request.graceful -= 1
    if _request.outcome and not _request.graceful:
        raise StopRequested(_request.outcome)


@contextmanager
def handle_signals(at_once: Callable[[Outcome], None]) -> Iterator[None]:
    """Handle the signals within the block. `at_once` records the outcome of a second one, just before the exit.

    Outside of the main thread Python handles no signals, and the block runs without. Processes forked in the block,
    such as data workers, end silently at a signal, or with this one if it shuts down gracefully.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def handle(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != process:
            if not _request.graceful:
                os._exit(0)  # with another status, torch would raise an error in the parent
            return
        outcome, now = SIGNALS[number], time.monotonic()
        if _request.outcome is None:
            _request.outcome, _request.time = outcome, now
            if not _request.graceful:
                raise StopRequested(outcome)
        elif now - _request.time > ECHO:
            at_once(outcome)
            os._exit(128 + number)

    former = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        _request.outcome = None
        for number, handler in former.items():
            signal.signal(number, handler)
