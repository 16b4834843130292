"""Asked to stop: SIGTERM and SIGUSR1 (a cluster wants its machine back), SIGINT (Ctrl-C).

Training finishes its step, saves and ends; whatever else a run does is broken off where it is, since nothing of it
would be lost. A second signal ends the process at once.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

Outcome = Literal["preempted", "interrupted"]

# How a process ends that was asked to. 75 is EX_TEMPFAIL of sysexits.h, "try again later": what a cluster requeues on.
STATUS: dict[Outcome, int] = {"preempted": 75, "interrupted": 128 + signal.SIGINT}
SIGNALS: dict[int, Outcome] = {
    signal.SIGTERM: "preempted",
    signal.SIGUSR1: "preempted",
    signal.SIGINT: "interrupted",
}
ECHO = 1.0  # seconds in which a signal counts as the former one again: a cluster may tell a process and its parent


class StopRequested(BaseException):
    """The run ends because it was asked to; whatever was to be saved is saved."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome: Outcome = outcome


class _Request:
    """What was asked of this process: signals are the process's own, so there is one of these."""

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self.patient = 0  # who is looking for requests himself, and saves first
        self.time = 0.0


_request = _Request()


def stop_requested() -> Outcome | None:
    """How the run is to end, if it was asked to."""
    return _request.outcome


@contextmanager
def graceful_shutdown() -> Iterator[None]:
    """While the block runs, a first signal is only noted: the block looks at `requested` and raises `Stopped`."""
    _request.patient += 1
    try:
        yield
    finally:
        _request.patient -= 1
    if _request.outcome and not _request.patient:
        raise StopRequested(_request.outcome)


@contextmanager
def handle_signals(at_once: Callable[[Outcome], None]) -> Iterator[None]:
    """Handles the signals until the block ends. `at_once` notes down a second one's end, just before it comes.

    Elsewhere than in a process's main thread Python handles no signals, and the block runs without. A process that was
    forked meanwhile, as those that load data are, ends at a signal without a word, since this one tells the end; where
    this one is patient it stays, and ends when this one does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def handle(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != process:
            if not _request.patient:
                os._exit(0)  # or torch would raise in the parent: a process of it failed
            return
        outcome, now = SIGNALS[number], time.monotonic()
        if _request.outcome is None:
            _request.outcome, _request.time = outcome, now
            if not _request.patient:
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
