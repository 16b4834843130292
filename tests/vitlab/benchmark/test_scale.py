"""Costs are measured in processes of their own, at three sizes, and extrapolated to real ones."""

import time

import pytest

from vitlab.benchmark.case import EXPONENT, OURS
from vitlab.benchmark.scale import PEAK, PRIVATE, Scale, forked_contender, real_costs, subject_cases
from vitlab.benchmark.scale_subjects import Subject
from vitlab.diagnostics.timing import Clock, Measurement

CLOCK = Clock(rounds=1, seconds=0.0)


def burn(size: int) -> bytearray:
    end = time.process_time() + size / 1000
    while time.process_time() < end:
        pass
    return bytearray(b"1") * (size * 250_000)


def test_time_and_memory_are_those_of_the_call() -> None:
    freed = [b"1" * 100_000 for _ in range(1000)]
    top_of_heap = b"1" * 100_000
    del freed  # 100 MB that this process keeps, and that a forked one inherits
    contender = forked_contender("a", burn, 200)
    seconds = contender.run()
    del top_of_heap
    assert isinstance(seconds, float)
    assert 0.2 < seconds < 0.4
    assert contender.figures[PEAK] == pytest.approx(50, abs=5)
    assert contender.figures[PRIVATE] > 45
    with pytest.raises(RuntimeError, match="a failed with status 1"):
        forked_contender("a", lambda data: data["missing"], {}).run()


def test_the_exponent_leads_to_the_cost_at_a_real_size() -> None:
    subject = Subject(
        unit="things", sizes=(20, 40, 80), prepare=lambda folder, n: n, contenders={OURS: burn}, real={"all": 800}
    )
    *_, last = subject_cases("burning", subject, 1.0, CLOCK)
    assert (last.name, last.axis, last.size) == ("burning, 80 things", "things (burning)", 80)
    figures = last[OURS].figures
    assert figures[EXPONENT] == pytest.approx(1, abs=0.4)
    assert figures["s at all"] == pytest.approx(0.8, rel=0.6)
    flat = Measurement(name="a", seconds=(2.0,), figures={EXPONENT: 0.1})
    assert real_costs(flat, 10, {"x": 100}) == {"s at x": 20.0}, "at least linear"


def test_subjects_are_parts_of_the_benchmark() -> None:
    cases = list(Scale(subjects=["listing"], size=0.1).cases(CLOCK))
    assert [case.size for case in cases] == [200, 800, 3200]
    assert all(measurement.median > 0 for case in cases for measurement in case.measured)
