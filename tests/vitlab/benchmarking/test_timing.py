"""Everybody gets the same number of turns, in another order each time; goals compare what they say."""

import gc
import itertools
import time
from collections.abc import Callable

import pytest
import torch

from benchmark_cases import measured
from vitlab.benchmarking.timing import DEVICE_MS, Case, Clock, Contender, Goal


def test_contenders_take_turns_in_an_order_of_each_round_so_that_neighbours_change() -> None:
    turns: list[str] = []
    contenders = [Contender(name=name, run=lambda name=name: turns.append(name), items=2) for name in "abc"]  # type: ignore[misc]
    found = Clock(rounds=12, seconds=0.0).measure(contenders)
    assert turns[:6] == ["a", "a", "b", "b", "c", "c"]  # warms up
    rounds = ["".join(turns[place : place + 3]) for place in range(6, len(turns), 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    followed = {one + other for each in rounds for one, other in itertools.pairwise(each)}
    assert followed == {"ab", "ac", "ba", "bc", "ca", "cb"}
    assert [(m.name, len(m.seconds), m.calls, m.items) for m in found] == [(n, 12, 1, 2) for n in "abc"]


def test_short_calls_are_repeated_until_they_last_long_enough() -> None:
    calls: list[None] = []
    waits: list[None] = []
    clock = Clock(rounds=2, seconds=0.01, synchronise=lambda: waits.append(None))
    (found,) = clock.measure([Contender(name="short", run=lambda: calls.append(None))])
    assert found.calls > 100
    assert len(calls) == 2 + 2 * found.calls
    assert len(waits) == 1 + 2 * 3  # after the first call, before and after each measurement
    assert 0 < found.median < 1e-4


def test_a_call_without_warm_up_counts_from_the_first() -> None:
    calls: list[None] = []

    def run() -> float:
        calls.append(None)
        return float(len(calls))

    (found,) = Clock(rounds=2, seconds=9.0).measure([Contender(name="a", run=run, own=True, warm=True)])
    assert (found.seconds, found.calls) == ((1.0, 2.0), 1)


def test_a_device_s_own_time_is_a_figure_of_what_runs_on_it_the_median_of_a_call_in_each_round() -> None:
    turns: list[str] = []

    def timer(run: Callable[[], object], seconds: float) -> float:
        assert seconds > 0
        turns.append("timed")
        run()
        return 10.0 ** turns.count("timed")

    contenders = [
        Contender(name="a", run=lambda: turns.append("a"), figures={"MB": 3.0}),
        Contender(name="own", run=lambda: 1.0, own=True),
    ]
    found, own = Clock(rounds=3, seconds=0.0, device_timer=timer).measure(contenders)
    assert turns == ["a", "a", *(["a", "timed", "a"] * 3)]
    assert found.figures == {"MB": 3.0, DEVICE_MS: 100.0}
    assert own.figures == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_is_busy_no_longer_than_a_call_takes_and_idle_where_python_is_slow() -> None:
    matrix = torch.rand(512, 512, device="cuda")

    def slow() -> None:
        for _ in range(20):
            matrix @ matrix
            time.sleep(0.001)

    (found,) = Clock(rounds=3, seconds=0.0, device=matrix.device).measure([Contender(name="slow", run=slow)])
    assert 0 < found.figures[DEVICE_MS] < 1000 * found.median / 2


def test_the_collector_is_at_rest_only_while_it_is_measured() -> None:
    states: list[bool] = []
    clock = Clock(rounds=1, seconds=0.0)
    clock.measure([Contender(name="a", run=lambda: states.append(gc.isenabled()))])
    assert states[-1] is False
    assert gc.isenabled()


def test_medians_spread_and_ratios_are_of_items_a_second() -> None:
    ours, theirs = measured("vitlab", 1.0, 2.0, 3.0, items=8), measured("timm", 4.0, items=4)
    assert (ours.median, ours.rate, ours.spread) == (2.0, 4.0, 0.5)
    assert theirs.spread == 0
    assert ours.ratio(theirs) == 4.0


def test_a_goal_is_against_the_fastest_peer_or_the_one_it_names() -> None:
    rows = [measured("vitlab", 2.0), measured("timm", 3.0), measured("other", 1.0), measured("limit", 0.1, peer=False)]
    goals = [Goal(least=1.0), Goal(least=1.05, against="timm"), Goal(least=1.0, against="absent")]
    case = Case(part="p", name="c", unit="images", measured=rows, goals=goals)
    assert [(rival, ratio) for _, rival, ratio in case.outcomes()] == [("other", 0.5), ("timm", 1.5)]


def test_a_goal_over_a_figure_wants_less_of_it() -> None:
    rows = [measured("vitlab", 2.0, MB=10), measured("timm", 1.0, MB=12), measured("other", 1.0)]
    goal = Goal(least=1.0, figure="MB")
    case = Case(part="p", name="c", unit="images", measured=rows, goals=[goal])
    ((found, rival, ratio),) = case.outcomes()
    assert (found, rival) == (goal, "timm")
    assert ratio == pytest.approx(1.2)
    assert goal.told("timm") == "MB of timm at least 1 x that of vitlab"
    assert Goal(least=1.0, figure="MB", words="no more than timm takes").told("timm") == "no more than timm takes"
