"""Seconds of processors are counted in the process that works, and not while it waits."""

import multiprocessing
import sys
import time
from multiprocessing.connection import Connection

import pytest

from vitlab.benchmarking.cores import cpu_seconds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it of other processes")


def busy(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


def work(pipe: Connection) -> None:
    busy(0.2)
    pipe.send("done")
    pipe.recv()


def spent(since: float | None) -> float:
    now = cpu_seconds()
    assert now is not None
    assert since is not None
    return now - since


def test_what_a_living_child_works_counts_as_the_process_own_does() -> None:
    ours, theirs = multiprocessing.Pipe()
    before = cpu_seconds()
    child = multiprocessing.Process(target=work, args=(theirs,))
    child.start()
    assert ours.recv() == "done"
    together = spent(before)
    before = cpu_seconds()
    time.sleep(0.3)
    waiting = spent(before)
    busy(0.2)
    alone = spent(before)
    ours.send("end")
    child.join()
    assert together >= 0.2
    assert waiting < 0.1
    assert alone >= 0.2
