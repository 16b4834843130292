"""Importance of settings: what explains the scores is found, and nothing is claimed without evidence."""

import itertools
import math
import random
from pathlib import Path

import pytest

from vitlab.sweeps.ledger import Job, Status
from vitlab.sweeps.report.importance import RELIABLE, setting_importance


def job(choices: dict[str, str], value: float, status: Status = "finished") -> Job:
    return Job("-".join(choices.values()), Path("x"), choices, status, 1, {"val/loss": value})


def test_on_a_grid_the_shares_are_those_of_the_variances() -> None:
    grid = itertools.product((0, 1), (0, 1), (0, 1))
    jobs = [job({"a": str(a), "b": f"v{b}", "seed": str(s)}, 3.0 * a + 1.0 * b + 0.1 * s) for a, b, s in grid]
    found = setting_importance(jobs, "val/loss")
    assert list(found.shares) == ["a", "b", "seed"]
    assert found.shares["a"] == pytest.approx(9 / 10.01, abs=0.05), "variance 9 of 9 + 1 + 0.01"
    assert sum(found.shares.values()) == pytest.approx(1)
    assert (found.n, found.left_out) == (8, {})
    assert found == setting_importance(jobs, "val/loss"), "the same again"


def test_numbers_that_a_search_drew_are_a_range() -> None:
    draw = random.Random(0)
    jobs = []
    for _ in range(40):
        lr, width, name = 10 ** draw.uniform(-4, -1), draw.choice(["16", "32"]), f"n{draw.random()}"
        jobs.append(job({"lr": f"{lr:.6g}", "width": width, "name": name}, abs(lr - 0.03) * 10 + draw.random() / 50))
    found = setting_importance(jobs, "val/loss")
    assert found.shares["lr"] > 0.8
    assert found.left_out == {"name": "nearly every job has another value, and they are not numbers"}


def test_nothing_is_claimed_without_evidence() -> None:
    jobs = [job({"a": str(i), "b": "1", **({"c": "1"} if i else {})}, float(i)) for i in range(6)]
    jobs.append(job({"a": "7", "b": "1", "c": "2"}, 100.0, "crashed"))
    found = setting_importance(jobs, "val/loss")
    assert (found.n, list(found.shares)) == (6, ["a"])
    assert found.left_out == {"b": "all finished jobs have the same", "c": "not every job has it"}
    assert setting_importance(jobs[:3], "val/loss").shares == {}, "too few"
    assert setting_importance([job({"a": str(i % 2)}, 1.0) for i in range(8)], "val/loss").shares == {}, (
        "nothing differs"
    )
    assert setting_importance(jobs, "val/acc").n == 0


def search(jobs: int, draw: random.Random) -> dict[str, float]:
    """The shares in a random search of a rate (which matters most), a depth (a little) and a seed (noise alone)."""
    found = []
    for _ in range(jobs):
        lr, depth, seed = 10 ** draw.uniform(-4, -2), draw.choice("1234"), draw.choice("012")
        loss = abs(math.log10(lr) + 3) - 0.15 * int(depth) + abs(draw.gauss(0, 0.1))
        found.append(job({"lr": f"{lr:.4g}", "depth": depth, "seed": seed}, loss))
    return setting_importance(found, "val/loss").shares


def test_from_enough_jobs_the_order_is_right_each_time() -> None:
    for seed in range(4):
        shares = search(RELIABLE, random.Random(seed))
        assert list(shares) == ["lr", "depth", "seed"]
        assert shares["seed"] < 0.1 < shares["depth"], "from 8 jobs the seed got as much as 0.39 of it in 6 draws"
