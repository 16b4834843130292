"""A short training is a real one that leaves no trace, and its parts sum to its time."""

import logging

import pytest
import torch

from doctor_fixtures import profiled_run
from vitlab.config.schema import Node
from vitlab.diagnostics.measure import PARTS
from vitlab.runs.muted_logs import muted_logs


@pytest.mark.parametrize("accumulate", [1, 2])
def test_parts_sum_to_the_time_of_a_step_and_no_weight_moves(accumulate: int) -> None:
    run = profiled_run(accumulate=accumulate)
    before = {name: tensor.clone() for name, tensor in run.module.network.state_dict().items()}
    timing = run.train({}, steps=4, warmup=1, stages=True)
    assert timing.images == pytest.approx(32, abs=1)
    assert timing.seconds == pytest.approx(sum(timing.parts.values()))
    assert tuple(timing.parts) == tuple(PARTS)
    assert all(timing.parts[name] > 0 for name in ("forward", "backward", "optimizer", "augmentation", "callbacks"))
    assert all(torch.equal(before[name], tensor) for name, tensor in run.module.network.state_dict().items())


def test_an_override_holds_for_one_training() -> None:
    run = profiled_run()
    overrides = {"batch_size": 64, "data.augment.auto_augment": "randaugment", "trainer.log_every_n_steps": 3}
    data, trainer = run.data(overrides), run.make_trainer(overrides, folder="unused", max_steps=1)
    assert (data.augment.auto_augment, trainer.log_every_n_steps) == ("randaugment", 3)  # type: ignore[attr-defined]
    assert run.train(overrides, steps=2, warmup=1).images == pytest.approx(64, abs=2), "to within an image per step"
    assert run.train({}, steps=2, warmup=1).images == pytest.approx(32, abs=1)
    assert (run.datamodule.batch_size, run.datamodule.augment.auto_augment) == (32, "none")
    assert run.classifier({"compile": True}) is run.classifier({"compile": True}) is not run.module


def test_callbacks_that_save_or_show_are_left_out() -> None:
    kinds = ("LastCheckpoint", "BestCheckpoint")
    saving: Node = {name: {"_target_": f"vitlab.training.checkpoints.{name}", "dirpath": "x"} for name in kinds}
    saving["progress"] = {"_target_": "lightning.pytorch.callbacks.RichProgressBar"}
    assert list(profiled_run(callbacks=saving).callbacks) == ["monitor"]


def test_logs_are_muted_within_a_training_only(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("vitlab.training.classifier")
    with caplog.at_level(logging.INFO):
        with muted_logs("vitlab", level=logging.WARNING):
            log.info("epoch 1")
            log.warning("slow")
        log.info("done")
    assert [record.message for record in caplog.records] == ["slow", "done"]
