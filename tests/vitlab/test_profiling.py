"""A short training is a real one of which nothing is left, and its parts are all of it."""

import pytest
import torch

from patients import LOADERS, SlowData, patient
from vitlab.profiling import PARTS, Stages, Variant, shares
from vitlab.schema import Node


@pytest.mark.parametrize("parts", [1, 2])
def test_parts_are_all_of_the_time_and_nothing_moves(parts: int) -> None:
    subject, stages = patient(parts=parts), Stages(torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in subject.module.network.state_dict().items()}
    timed, window = subject.train(Variant(), steps=4, warmup=1, stages=stages)
    assert timed.images == pytest.approx(32, abs=1)
    assert timed.seconds * 4 == pytest.approx(sum(window.parts.values()))
    assert tuple(window.parts) == PARTS
    assert sum(shares(window.parts).values()) == pytest.approx(1)
    assert all(window.parts[name] > 0 for name in ("forward", "backward", "optimizer", "augmentation", "callbacks"))
    assert timed.saving > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in subject.module.network.state_dict().items())


def test_a_variant_is_trained_and_the_next_one_is_as_configured_again() -> None:
    subject = patient()
    changed, _ = subject.train(Variant(batch_size=64, log_every_n_steps=3), steps=2, warmup=1)
    plain, _ = subject.train(Variant(), steps=2, warmup=1)
    assert changed.images == pytest.approx(64, abs=2), "an epoch's steps are equal to within an image"
    assert plain.images == pytest.approx(32, abs=1)
    assert (subject.datamodule.batch_size, subject.datamodule.num_workers) == (32, 0)
    assert subject.images(Variant(batch_size=8))[0].shape == (8, 1, 8, 8)


def test_what_saves_or_shows_is_left_out() -> None:
    kinds = ("LastCheckpoint", "BestCheckpoint")
    saving: Node = {name: {"_target_": f"vitlab.checkpoints.{name}", "dirpath": "x"} for name in kinds}
    saving["progress"] = {"_target_": "lightning.pytorch.callbacks.RichProgressBar"}
    assert list(patient(callbacks=saving).callbacks) == ["monitor"]


@LOADERS
def test_reading_is_timed_alone() -> None:
    assert 0.04 < patient(SlowData).reading(Variant(), batches=3) < 0.4
    assert patient().reading(Variant(), batches=3) < 0.04


def test_an_evaluation_is_extrapolated_from_some_batches() -> None:
    seconds, batches = patient().evaluation(batches=2)
    assert 0 < seconds < 1
    assert batches == -(-144 // 32)


def test_a_variant_is_told_as_on_a_command_line() -> None:
    both = Variant(num_workers=2).beside(Variant(precision="bf16-mixed"))
    assert str(both) == "data.num_workers=2 trainer.precision=bf16-mixed"
    assert str(Variant()) == "as configured"
    assert str(Variant(num_workers=0, compile=True, smaller=True)) == "data.num_workers=0 compile=true smaller files"
