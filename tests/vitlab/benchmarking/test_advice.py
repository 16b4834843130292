"""Predicted and measured gains come out side by side."""

import math
from pathlib import Path

import pytest

from vitlab.benchmarking import advice, machine, results, running
from vitlab.benchmarking.advice import Advice


@pytest.mark.long
def test_each_change_is_a_case_with_both_gains() -> None:
    tiny = {"images": 16, "image_size": 32, "batch_size": 4, "steps": 1, "rounds": 1, "dim": 16, "depth": 1}
    part = Advice(**tiny, workers=(), changes=("precision", "auto_augment", "smaller"))  # type: ignore[arg-type]
    clock = machine.clock(rounds=1, seconds=0.01, threads=None, accelerator="cpu")
    cases = list(part.cases(clock))
    assert [case.name for case in cases] == [
        "jpeg, trainer.precision=bf16-mixed",
        "jpeg, smaller files",
        "randaugment, data.augment.auto_augment=none",
        "memory, trainer.precision=bf16-mixed",
    ]
    for case in cases:
        changed = case["changed"]
        gains = [changed.figures[name] for name in ("predicted gain", "measured gain")]
        assert all(math.isfinite(gain) and gain > 0 for gain in gains)
        assert changed.ratio(case["as configured"]) == pytest.approx(gains[1])
        assert len(case.outcomes()) == 1


@pytest.mark.parametrize(
    ("predicted", "gains", "reached"),
    [
        (1.2, (1.1, 1.1, 1.1), True),
        (1.2, (1.09, 1.09, 1.09), False),
        (0.8, (0.9, 0.9, 0.9), False),
        (1.2, (1.0, 1.0, 1.3), False),
        (1.2, (0.8, 1.0, 1.3), True),  # the quartiles are 0.9 and 1.15
        (1.5, (0.8, 1.0, 1.3), False),
        (1.0, (1.0, 1.0, 1.0), True),
    ],
)
def test_a_prediction_may_be_off_by_a_tenth_or_by_as_much_as_the_rounds_are(
    predicted: float, gains: tuple[float, ...], reached: bool
) -> None:
    trial = Trial(variant=Variant(num_workers=1), predicted=predicted, gains=gains)
    found = advice.case("jpeg, data.num_workers=1", trial, [100.0, 100.0, 100.0])
    ((goal, rival, ratio),) = found.outcomes()
    assert rival == "changed"
    assert (ratio >= goal.least) is reached
    (line,) = results.told(found)
    assert "predicted within 10% of the measured gain" in line
    assert line.endswith("| reached |" if reached else "| **missed** |")
    measured = sorted(gains)[1]
    assert f"| predicted {predicted:.2f}, measured {measured:.2f}, off by {abs(predicted - measured):.3f} of " in line
    assert running.line(found).endswith(" allowed" if reached else " allowed: missed")
    assert " x " not in running.line(found)


def test_predictions_are_drawn_beside_what_was_measured(tmp_path: Path) -> None:
    trial = Trial(variant=Variant(num_workers=1), predicted=1.2, gains=(1.1, 1.2, 1.3))
    Advice().draw([advice.case("jpeg, data.num_workers=1", trial, [100.0, 100.0, 100.0])], tmp_path)
    assert (tmp_path / "advice.png").read_bytes().startswith(b"\x89PNG")
    Advice().draw([], tmp_path / "none")


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"advice.images=7 must be at least 4 x advice.batch_size=2"):
        Advice(images=7, batch_size=2)
