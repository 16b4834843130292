"""Predicted and measured gains come out side by side."""

import math

import pytest

from vitlab.benchmarking import machine
from vitlab.benchmarking.advice import Advice


@pytest.mark.long
def test_each_change_is_a_case_with_both_gains() -> None:
    tiny = {"images": 16, "image_size": 32, "batch_size": 4, "steps": 1, "rounds": 1, "dim": 16, "depth": 1}
    part = Advice(**tiny, workers=(), changes=("precision", "smaller"))  # type: ignore[arg-type]
    clock = machine.clock(rounds=1, seconds=0.01, threads=None, accelerator="cpu")
    cases = list(part.cases(clock))
    assert [case.name for case in cases] == [
        "jpeg, trainer.precision=bf16-mixed",
        "jpeg, smaller files",
        "memory, trainer.precision=bf16-mixed",
    ]
    for case in cases:
        changed = case["changed"]
        gains = [changed.figures[name] for name in ("predicted gain", "measured gain")]
        assert all(math.isfinite(gain) and gain > 0 for gain in gains)
        assert changed.ratio(case["as configured"]) == pytest.approx(gains[1])


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"advice.images=7 must be at least 4 x advice.batch_size=2"):
        Advice(images=7, batch_size=2)
