"""What work takes of processors, whichever process does it: a rate by the clock says nothing of how many were busy."""

import multiprocessing
import sys
import time


def cpu_seconds() -> float | None:
    """So far, of this process and of its living children of `multiprocessing`, with all their threads; None but on
    Linux. To nanoseconds, where /proc counts in hundredths of a second.
    """
    if sys.platform != "linux":
        return None
    children = (child.pid for child in multiprocessing.active_children() if child.pid is not None)
    return time.process_time() + sum(time.clock_gettime(clock_of(pid)) for pid in children)


def clock_of(pid: int) -> int:
    """The clock of a process' time on processors, as `clock_getcpuclockid(3)` names it."""
    return ~pid << 3 | 2
