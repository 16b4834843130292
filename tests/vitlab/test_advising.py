"""What is predicted follows from what was measured, and what is said from both."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from patients import LOADERS, SlowData, folder, patient
from vitlab import advising, launch
from vitlab.advising import Cost, Scale, Trial
from vitlab.data import augment_ops
from vitlab.data.augment import Augment
from vitlab.data.datamodule import MOST_WORKERS
from vitlab.models.vit import VisionTransformer
from vitlab.profiling import PARTS, Patient, Variant

PARTS_SECONDS = dict(zip(PARTS, (0.06, 0.02, 0.002, 0.004, 0.01, 0.02, 0.003, 0.005, 0.001), strict=True))
COST = Cost(
    parts=PARTS_SECONDS, rows=0.02, sent=0.09, together=4.0, beside=4, workers=0, cores=4, threads=1, every=10
)  # 45 ms are the loop's own
MAIN = 0.045


def test_workers_take_the_reading_out_of_the_loop_as_far_as_cores_go() -> None:
    assert advising.seconds(COST, Variant()) == pytest.approx(MAIN + 0.08)
    assert advising.seconds(COST, Variant(num_workers=1)) == pytest.approx(0.09)
    assert advising.seconds(COST, Variant(num_workers=2)) == pytest.approx(0.045)
    assert advising.seconds(COST, Variant(num_workers=8)) == pytest.approx(MAIN)
    twins = Cost(**{**vars(COST), "cores": 2, "beside": 2, "together": 1.0})  # two threads of one core
    assert advising.seconds(twins, Variant(num_workers=1)) == pytest.approx(MAIN + 0.09)


def test_processes_that_share_the_cores_are_told_of() -> None:
    assert advising.crowded(COST, step=0.1) == ""
    assert advising.crowded(Cost(**{**vars(COST), "workers": 3}), step=0.1) == "", "a core for each"
    few = Cost(**{**vars(COST), "workers": 3, "cores": 2})
    assert advising.crowded(few, step=2.0) == "", "loading takes little"
    crowd = advising.crowded(few, step=0.1)
    assert crowd == (
        "computing and loading (data.num_workers=3) share 2 cores: a batch takes a loading process 90 ms, so a part of "
        "a step's 100 ms that looks like computing is loading"
    )
    found = dict.fromkeys(PARTS, 0.0) | {"forward": 1.0}
    told = advising.advice(found, [], evaluation=0.0, saving=0.0, step=0.1, epoch=10, crowd=crowd)
    assert told[:2] == ["the network holds it back: 100% of a step is computing", crowd]


@LOADERS
def test_no_more_loading_processes_are_started_than_a_training_would_start(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, asked = patient(), list[int | None]()

    def reading(variant: Variant, *, batches: int) -> float:
        asked.append(variant.num_workers)
        return Patient.reading(subject, Variant(num_workers=0), batches=1)

    monkeypatch.setattr(launch, "cores", lambda: 128)
    monkeypatch.setattr(subject, "reading", reading)
    cost, _, _ = advising.examine(subject, steps=1, warmup=1)
    assert asked == [1, MOST_WORKERS]
    assert (cost.cores, cost.beside) == (128, MOST_WORKERS)
    chosen = advising.candidates(subject, cost, ["num_workers"], None)
    assert [variant.num_workers for _, variant in chosen] == [1, 2, 4, 8, 16]
    assert Cost(**{**vars(COST), "cores": 128, "beside": 16, "together": 16.0}).power(64) == pytest.approx(64)
    named = advising.candidates(subject, cost, ["num_workers"], [32])
    assert [variant.num_workers for _, variant in named] == [32], "what is asked for is tried"


def test_a_change_acts_on_its_own_part() -> None:
    half = advising.predicted(COST, Variant(precision="bf16-mixed"), Scale(step=0.5))
    assert half == pytest.approx((MAIN + 0.08) / (MAIN + 0.08 - 0.015))
    twice = advising.predicted(COST, Variant(batch_size=64), Scale(step=2, images=2))
    assert twice == pytest.approx(2 * 0.125 / (0.125 + 0.03 + 0.006 + 0.08))
    rare = advising.predicted(COST, Variant(log_every_n_steps=20), Scale())
    assert rare == pytest.approx(0.125 / (0.125 - 0.02 / 20))
    plain = advising.predicted(COST, Variant(auto_augment="none"), Scale(augmentation=0.25))
    assert plain == pytest.approx(0.125 / (0.125 - 0.75 * 0.004))
    assert advising.predicted(COST, Variant(smaller=True), Scale(reading=0.25)) == pytest.approx(0.125 / 0.065)
    assert advising.predicted(COST, Variant(), Scale()) == 1


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((1.5, 1.6, 1.4), "faster"),
        ((0.8, 0.8, 0.8), "slower"),
        ((1.02, 1.02, 1.02), "within noise"),
        ((1.1, 1.6, 0.7), "within noise"),
        ((), "out of memory"),
    ],
)
def test_less_than_the_spread_is_no_gain(gains: tuple[float, ...], verdict: str) -> None:
    assert Trial(variant=Variant(num_workers=1), predicted=1.2, gains=gains, why="out of memory").verdict == verdict


def test_what_gains_is_tried_together_but_for_what_is_another_training() -> None:
    def trial(gain: float, **change: object) -> Trial:
        return Trial(variant=Variant(**change), predicted=None, gains=(gain,) * 3)  # type: ignore[arg-type]

    one, two = trial(1.2, num_workers=1), trial(1.5, num_workers=2)
    low, large = trial(1.4, precision="bf16-mixed"), trial(1.9, batch_size=64)
    assert advising.together([one, two, low, large]) == Variant(num_workers=2, precision="bf16-mixed")
    assert advising.together([one, two, large, trial(1.9, auto_augment="none")]) is None
    assert advising.together([trial(1.2, num_workers=0), low]) == Variant(num_workers=0, precision="bf16-mixed")
    assert advising.combined([Scale(step=0.5), Scale(reading=0.25)]) == Scale(step=0.5, reading=0.25)


def test_the_words_name_the_worst_part_and_the_largest_gain_first() -> None:
    found = {name: seconds / sum(PARTS_SECONDS.values()) for name, seconds in PARTS_SECONDS.items()}
    trials = [
        Trial(variant=Variant(num_workers=1), predicted=1.3, gains=(1.2, 1.2)),
        Trial(variant=Variant(num_workers=2), predicted=2.0, gains=(1.9, 1.9)),
        Trial(variant=Variant(precision="bf16-mixed"), predicted=1.0, gains=(1.0, 1.0)),
    ]
    told = advising.advice(found, trials, evaluation=5.0, saving=0.1, step=0.1, epoch=100)
    assert advising.bottleneck(found) == "reading"
    assert told[0].endswith("holds it back: 48% of a step")
    assert told[1] == "data.num_workers=2: 1.90 times the images a second (measured, 2.00 predicted)"
    assert told[2].startswith("data.num_workers=1: 1.20")
    assert any("validation takes 33% of an epoch" in line for line in told)
    assert any(line.startswith("augmentation of files as they are read takes 16%; what helps") for line in told)
    assert not any("precision" in line for line in told[1:3])
    others = [
        Trial(variant=Variant(smaller=True), predicted=None, gains=(1.5, 1.5)),
        Trial(variant=Variant(num_workers=2, smaller=True), predicted=None, gains=(1.4, 1.4)),
        Trial(variant=Variant(auto_augment="none"), predicted=1.3, gains=(1.3, 1.3)),
    ]
    told = advising.advice(found, others, evaluation=0.0, saving=0.0, step=0.1, epoch=100, packing="PACK")
    assert told[1:4] == [
        "PACK: 1.50 times the images a second (measured)",
        "PACK data.num_workers=2: 1.40 times the images a second (measured)",
        "data.augment.auto_augment=none: 1.30 times the images a second (measured, 1.30 predicted); "
        "another training: augmentation decides what is learnt",
    ]
    none = advising.advice(found, trials[2:], evaluation=0.0, saving=0.0, step=0.1, epoch=100)
    assert "nothing that was tried gains more than the noise" in none


def slowly(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def slow(*arguments: Any) -> Tensor:
        time.sleep(0.01)
        return function(*arguments)

    return slow


@LOADERS
@pytest.mark.parametrize("files", [True, False], ids=["files", "memory"])
def test_augmentation_is_predicted_where_it_happens(
    files: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, name in ((v2.RandAugment, "forward"), (augment_ops, "rand_augment")):
        monkeypatch.setattr(place, name, slowly(getattr(place, name)))
    subject, augment = patient(), Augment(auto_augment="randaugment")
    if files:
        subject.datamodule = folder(tmp_path, 20, augment=augment)
    else:
        subject.datamodule.augment = augment
    kinds = advising.candidates(subject, COST, ["auto_augment"], None)
    assert [str(variant) for _, variant in kinds] == ["data.augment.auto_augment=none"]
    scale = advising.scales(subject, kinds, rounds=1)["data.augment.auto_augment=none"]
    changed, alike = (scale.reading, scale.augmentation) if files else (scale.augmentation, scale.reading)
    assert 0 < changed < 0.6
    assert alike == 1
    if files:
        assert 0.5 < subject.varying(batches=2) < 1
        subject.datamodule.batch_size = 64
        assert 0.5 < subject.varying(batches=2) < 1, "an epoch of one step"
        subject.datamodule.augment = Augment()
        assert subject.varying(batches=2) == 0, "nothing is done to a file but decoding and cropping"
    else:
        assert subject.varying(batches=2) == 0, "of what is in memory, the loop varies all at once"
        subject.datamodule.augment = Augment()
    assert advising.candidates(subject, COST, ["auto_augment"], None) == []


@LOADERS
def test_a_batch_that_has_no_room_ends_its_trial_and_nothing_else() -> None:
    class Small(VisionTransformer):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 32:
                raise torch.OutOfMemoryError("no room")
            return super().forward(images)

    subject = patient()
    subject.module.network.__class__ = Small
    large, low = Variant(batch_size=64), Variant(precision="bf16-mixed")
    scales = advising.scales(subject, [("batch_size", large), ("precision", low)], rounds=1)
    assert scales[str(large)] == Scale(step=2, images=2)
    assert scales[str(low)].step > 0
    (failed, other), _ = advising.tried(subject, [(large, 1.0), (low, 1.0)], rounds=1, steps=1, warmup=1)
    assert (failed.verdict, failed.measured) == ("out of memory", None)
    assert other.measured is not None


@LOADERS
def test_a_slow_source_is_named_and_workers_help_as_predicted() -> None:
    subject = patient(SlowData)
    cost, timed, found = advising.examine(subject, steps=4, warmup=1)
    assert advising.bottleneck(found) == "reading"
    assert timed.workers == 0
    chosen = advising.candidates(subject, cost, ["num_workers", "precision", "batch_size"], [2])
    told = ["data.num_workers=2", "trainer.precision=bf16-mixed", "batch_size=64"]
    assert [str(variant) for _, variant in chosen] == told
    assert advising.scales(subject, chosen[2:], rounds=1)["batch_size=64"].images == 2
    workers = chosen[0][1]
    guess = advising.predicted(cost, workers, Scale())
    (trial,), rates = advising.tried(subject, [(workers, guess)], rounds=1, steps=8, warmup=1)
    assert guess > 1
    assert trial.measured is not None
    assert trial.measured > 1.1
    assert len(rates) == 1
