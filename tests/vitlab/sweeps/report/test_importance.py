"""Importance of settings: what explains the scores is found, and nothing is claimed without evidence."""

import itertools
import math
import random
from pathlib import Path

import pytest

from vitlab.sweeps.ledger import Job, Status
from vitlab.sweeps.report import importance
from vitlab.sweeps.report.importance import RELIABLE, setting_importance


def job(choices: dict[str, str], value: float, status: Status = "finished") -> Job:
    return Job("-".join(choices.values()), Path("x"), choices, status, 1, {"val/loss": value})


def test_on_a_grid_the_shares_are_those_of_the_variances() -> None:
    grid = itertools.product((0, 1), (0, 1), (0, 1))
    jobs = [job({"a": str(a), "b": f"v{b}", "seed": str(s)}, 3.0 * a + 1.0 * b + 0.1 * s) for a, b, s in grid]
    shares, n = setting_importance(jobs, "val/loss")
    assert list(shares) == ["a", "b", "seed"]
    assert shares["a"] == pytest.approx(9 / 10.01, abs=0.05), "variance 9 of 9 + 1 + 0.01"
    assert sum(shares.values()) == pytest.approx(1)
    assert n == 8
    assert (shares, n) == setting_importance(jobs, "val/loss"), "the same again"


def test_numbers_that_a_search_drew_are_a_range() -> None:
    draw = random.Random(0)
    jobs = []
    for _ in range(40):
        lr, width, name = 10 ** draw.uniform(-4, -1), draw.choice(["16", "32"]), f"n{draw.random()}"
        jobs.append(job({"lr": f"{lr:.6g}", "width": width, "name": name}, abs(lr - 0.03) * 10 + draw.random() / 50))
    shares, _ = setting_importance(jobs, "val/loss")
    assert shares["lr"] > 0.8
    assert shares.keys() == {"lr", "width"}, "a name that nearly each job has for its own explains nothing"


def test_only_the_order_of_numbers_counts() -> None:
    draw = random.Random(2)
    exponents, other = ([draw.uniform(-5, 0) for _ in range(100)] for _ in range(2))
    scores = [1.0 * (exponent < -3) + 0.1 * value for exponent, value in zip(exponents, other, strict=True)]
    shares, again = (
        setting_importance(
            [job({"rate": str(x), "other": str(y)}, s) for x, y, s in zip(rates, other, scores, strict=True)],
            "val/loss",
        )[0]
        for rates in ([10**x for x in exponents], exponents)
    )
    assert shares == again
    rate, slope = 0.4 * 0.6, 0.5**2 / 12  # the variances
    assert shares["rate"] == pytest.approx(rate / (rate + slope), abs=0.05)


def test_numbers_of_any_kind_have_a_share() -> None:
    values = [[f"{1_700_000_000 + i}" for i in range(20)], [f"1{'0' * i}" for i in range(20)], ["1", "1.0"] * 10]
    for column in values:  # differences that float32 does not hold, large numbers, the same number
        jobs = [job({"a": value, "b": str(i % 2)}, float(i)) for i, value in enumerate(column)]
        shares, _ = setting_importance(jobs, "val/loss")
        assert sum(shares.values()) == pytest.approx(1)
        assert (shares["a"] > 0.8) == (len(set(column)) == 20)
    jobs = [job({"a": f"{i}" if i else "inf", "b": str(i % 2)}, float(i)) for i in range(20)]
    assert list(setting_importance(jobs, "val/loss")[0]) == ["b"], "infinite is no number"


def test_many_values_and_many_jobs_take_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "MOST", 200)
    jobs = [job({"a": f"v{a}", "seed": str(s)}, a + s / 100) for a in range(5) for s in range(60)]
    shares, n = setting_importance(jobs, "val/loss")
    assert shares["a"] > 0.95, "60 categories have 2^60 subsets"
    assert n == 200


def test_nothing_is_claimed_without_evidence() -> None:
    jobs = [job({"a": str(i), "b": "1", **({"c": "1"} if i else {})}, float(i)) for i in range(6)]
    jobs.append(job({"a": "7", "b": "1", "c": "2"}, 100.0, "crashed"))
    shares, n = setting_importance(jobs, "val/loss")
    assert (n, list(shares)) == (6, ["a"]), "all finished jobs have the same b, and not each has c"
    assert setting_importance(jobs[:3], "val/loss")[0] == {}, "too few"
    assert setting_importance([job({"a": str(i % 2)}, 1.0) for i in range(8)], "val/loss")[0] == {}, "nothing differs"
    assert setting_importance(jobs, "val/acc") == ({}, 0)


def search(jobs: int, draw: random.Random) -> dict[str, float]:
    """The shares in a random search of a rate (which matters most), a depth (a little) and a seed (noise alone)."""
    found = []
    for _ in range(jobs):
        lr, depth, seed = 10 ** draw.uniform(-4, -2), draw.choice("1234"), draw.choice("012")
        loss = abs(math.log10(lr) + 3) - 0.15 * int(depth) + abs(draw.gauss(0, 0.1))
        found.append(job({"lr": f"{lr:.4g}", "depth": depth, "seed": seed}, loss))
    return setting_importance(found, "val/loss")[0]


def test_from_enough_jobs_the_order_is_right_each_time() -> None:
    for seed in range(4):
        shares = search(RELIABLE, random.Random(seed))
        assert list(shares) == ["lr", "depth", "seed"]
        assert 8 * shares["seed"] < shares["depth"]
        assert shares["depth"] == pytest.approx(0.25, abs=0.2), "0.028 of the variances 0.083 + 0.028"
