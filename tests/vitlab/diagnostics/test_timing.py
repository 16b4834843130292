"""Every contender gets the same number of turns, in another order each time."""

import gc
import itertools

from vitlab.diagnostics.timing import Clock, Contender, Measurement


def test_contenders_take_turns_in_an_order_of_each_round_so_that_neighbors_change() -> None:
    turns: list[str] = []
    contenders = [Contender(name=name, run=lambda name=name: turns.append(name), items=2) for name in "abc"]  # type: ignore[misc]
    found = Clock(rounds=6, seconds=0.0).measure(contenders)
    assert turns[:6] == ["a", "a", "b", "b", "c", "c"]  # warm-up
    rounds = ["".join(turns[place : place + 3]) for place in range(6, len(turns), 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    followed = {one + other for each in rounds for one, other in itertools.pairwise(each)}
    assert followed == {"ab", "ac", "ba", "bc", "ca", "cb"}
    assert [(m.name, len(m.seconds), m.items) for m in found] == [(n, 6, 2) for n in "abc"]


def test_short_calls_are_repeated_until_they_last_long_enough() -> None:
    calls: list[None] = []
    (found,) = Clock(rounds=2, seconds=0.01).measure([Contender(name="short", run=lambda: calls.append(None))])
    assert len(calls) > 2 + 2 * 100
    assert 0 < found.median < 1e-4


def test_a_contender_that_times_itself_counts_from_its_first_call() -> None:
    calls = iter((1.0, 2.0))
    (found,) = Clock(rounds=2, seconds=9.0).measure([Contender(name="a", run=lambda: next(calls), self_timed=True)])
    assert found.seconds == (1.0, 2.0)


def test_the_garbage_collector_pauses_only_while_calls_are_measured() -> None:
    states: list[bool] = []
    Clock(rounds=1, seconds=0.0).measure([Contender(name="a", run=lambda: states.append(gc.isenabled()))])
    assert states[-1] is False
    assert gc.isenabled()


def test_medians_spread_and_ratios_are_of_items_per_second() -> None:
    ours = Measurement(name="vitlab", seconds=(1.0, 2.0, 3.0), items=8)
    theirs = Measurement(name="timm", seconds=(4.0,), items=4)
    assert (ours.median, ours.rate, ours.spread) == (2.0, 4.0, 0.5)
    assert theirs.spread == 0
    assert ours.ratio(theirs) == 4.0
