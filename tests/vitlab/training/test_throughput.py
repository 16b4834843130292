"""Speed and data wait are correct in real trainings with slow parts."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.digits import digits
from vitlab.models import flops
from vitlab.models.vit import VisionTransformer
from vitlab.training import schedules
from vitlab.training.checkpoints import LastCheckpoint
from vitlab.training.classifier import Classifier
from vitlab.training.monitor import Monitor
from vitlab.training.throughput import ThroughputMeter

MakeTrainer = Callable[..., Trainer]


class Slowly(DataModule):
    """Digits, 101 in 4 steps, with a delay before augmentation."""

    def __init__(self, *, moving: float = 0.0, **settings: Any) -> None:
        super().__init__(
            source=digits, max_train_samples=101, batch_size=30, augment=Augment(), image_size=8, seed=0, **settings
        )
        self.moving = moving

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if getattr(batch, "count", None):
            time.sleep(self.moving)
        return super().on_after_batch_transfer(batch, dataloader_idx)


class SlowStep(Callback):
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        time.sleep(0.02)


def fitted(make: MakeTrainer, data: DataModule, *callbacks: Callback, **knobs: Any) -> ThroughputMeter:
    torch.manual_seed(0)
    network = VisionTransformer(image_size=8, patch_size=4, in_channels=1, num_classes=10, dim=16, depth=1, heads=2)
    network.patch_embed.strict_img_size = data.train_sizes == {(8, 8)}
    optimizer = partial(torch.optim.SGD, lr=0.1)
    module = Classifier(network, num_classes=10, optimizer=optimizer, schedule=schedules.constant)
    monitor = Monitor()
    given: dict[str, Any] = {"max_epochs": 2, "log_every_n_steps": 2, **knobs}
    make(callbacks=[monitor, *callbacks], **given).fit(module, data, weights_only=True)
    return monitor.meter


@pytest.mark.parametrize("parts", [1, 3])
def test_a_loop_that_waits_for_its_batches_says_so(parts: int, make_trainer: MakeTrainer) -> None:
    slow = fitted(make_trainer, Slowly(moving=0.06 / parts), accumulate_grad_batches=parts)
    quick = fitted(make_trainer, Slowly(), SlowStep(), accumulate_grad_batches=parts)
    assert slow.medians()["data_wait"] > 0.5
    assert quick.medians()["data_wait"] < 0.5
    assert all(0 <= row["train/data_wait"] <= 1 for row in slow.rows + quick.rows)


def test_utilization_is_the_work_done_divided_by_the_peak(make_trainer: MakeTrainer) -> None:
    meter = fitted(make_trainer, Slowly(), accumulate_grad_batches=2)
    network = VisionTransformer(image_size=8, patch_size=4, in_channels=1, num_classes=10, dim=16, depth=1, heads=2)
    assert meter.flops == flops.training_flops(network, (1, 8, 8))
    peak = flops.peak_flops(torch.device("cpu"), "32-true")
    assert peak is not None
    for row in meter.rows:
        assert row["train/mfu"] == pytest.approx(row["train/images_per_second"] * meter.flops / peak)


def test_utilization_is_that_of_the_size_of_the_epoch(make_trainer: MakeTrainer) -> None:
    meters = [fitted(make_trainer, Slowly(size_schedule=sizes)) for sizes in (None, {0: 4}, {0: 4, 1: 8})]
    assert [meter.flops for meter in meters] == [meters[0].flops, meters[1].flops, meters[0].flops]
    assert (meters[0].flops or 0) > (meters[1].flops or 0) > 0


def test_saving_is_no_training(make_trainer: MakeTrainer, tmp_path: Any) -> None:
    class SlowSaving(Callback):
        def on_save_checkpoint(self, *args: Any) -> None:
            time.sleep(0.1)

    started = time.perf_counter()
    last = LastCheckpoint(dirpath=str(tmp_path), every_n_train_steps=1)
    meter = fitted(make_trainer, Slowly(), SlowSaving(), last, enable_checkpointing=True)
    assert last.seconds > 8 * 0.1
    seconds = sum(101 / 2 / row["train/images_per_second"] for row in meter.rows)  # two rows an epoch
    assert 0 < seconds < time.perf_counter() - started - 8 * 0.1


def test_medians_leave_out_the_first_row(make_trainer: MakeTrainer) -> None:
    class SlowStart(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            time.sleep(0.5 if trainer.global_step == 1 else 0)

    meter = fitted(make_trainer, Slowly(), SlowStart())
    first, rest = meter.rows[0]["train/images_per_second"], meter.medians()["images_per_second"]
    assert first < 30 * 2 / 0.5
    assert rest > first
    assert meter.summary()[0] == f"{meter.rows[-1]['train/images_per_second']:,.0f} images/s", (
        "no row since the epoch's line"
    )
    meter.rows += [{"train/images_per_second": speed, "train/mfu": 0.5} for speed in (10.0, 30.0)]
    assert meter.summary() == ["20 images/s", "MFU 50%"]
    assert ThroughputMeter().medians() == {}
    assert ThroughputMeter().summary() == []
