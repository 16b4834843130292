"""The data path and its peers on tiny sets: what is measured is tested, not how fast it is."""

import math
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection

import pytest

from vitlab.benchmark import loading
from vitlab.benchmark.goals import outcomes
from vitlab.benchmark.loading import CPU_MS, PER_CORE, Loading, cpu_seconds
from vitlab.diagnostics.timing import Clock


def test_all_peers_do_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MEMORY_BATCH", 32)
    part = Loading(recipes=("digits", "cifar randaugment"), images=20, image_size=32, workers=(0, 1), batch_size=8)
    digits, cifar, alone, shared = part.cases(Clock(rounds=1, seconds=0.0))
    for case in (digits, cifar):
        assert [m.name for m in case.measured] == ["vitlab", "torchvision, tensors", "torchvision, PIL"]
        assert {m.items for m in case.measured} == {32}
    for case in (alone, shared):
        peers = ["torchvision, PIL", "torchvision.io, tensors", "timm"]
        assert [m.name for m in case.measured] == ["vitlab", *peers]
        assert [m.items for m in case.measured] == [18, 20, 20, 16], "a tenth is held out; timm's fills its batches"
        if sys.platform == "linux":
            for m in case.measured:
                # a file of 500 x 375 pixels takes a millisecond or more to decode, wherever that is done
                assert 0.2 < m.figures[CPU_MS] < 100
                assert m.figures[PER_CORE] == pytest.approx(1000 / m.figures[CPU_MS])
    for case in (digits, cifar, alone, shared):
        assert all(math.isfinite(m.rate) for m in case.measured)
        assert len(outcomes(case)) == 1


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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has clocks of other processes")
def test_the_cpu_time_of_a_living_child_counts_as_the_process_own_does() -> None:
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
