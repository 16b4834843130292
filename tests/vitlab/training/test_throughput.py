"""Speed and data wait are correct in real trainings with slow parts."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.digits import digits
from vitlab.models import flops
from vitlab.models.vit import VisionTransformer
from vitlab.training import schedules
from vitlab.training.checkpoints import LastCheckpoint
from vitlab.training.classifier import Classifier
from vitlab.training.monitor import Monitor
from vitlab.training.throughput import ThroughputMeter, WaitTimer, checkpoint_seconds

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


class Clock:
    """Seconds that pass where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.seconds)

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds


def test_a_row_has_the_images_of_its_steps_per_second_and_the_share_of_waiting(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(time, "sleep", clock.pass_by)

    class Steps(Callback):
        def on_before_backward(self, *_: Any) -> None:
            clock.pass_by(0.3)

        def on_validation_batch_end(self, *_: Any) -> None:
            clock.pass_by(7.0)

    monkeypatch.setattr(flops, "peak_flops", lambda *_: None)
    meter = fitted(make_trainer, Slowly(moving=0.1), Steps())
    speeds = [row["train/images_per_second"] for row in meter.rows]
    assert speeds == pytest.approx([51 / 0.8, 50 / 0.8] * 2), "two steps each"
    assert [row["train/data_wait"] for row in meter.rows] == pytest.approx([0.25] * 4)


def test_a_row_is_that_of_all_ranks_and_is_left_out_without_images_or_time(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, trainer, data = Clock(monkeypatch), make_trainer(), Slowly()
    network = VisionTransformer(image_size=8, patch_size=4, in_channels=1, num_classes=10, dim=16, depth=1, heads=2)
    module, meter = Classifier(network, num_classes=10), ThroughputMeter()
    data.setup()
    trainer.datamodule = data  # type: ignore[attr-defined]
    monkeypatch.setattr(flops, "peak_flops", lambda *_: 1e9)
    monkeypatch.setattr(Trainer, "world_size", 2)
    meter.open_row(trainer)
    assert meter.close_row(trainer, module, 30) == {}, "no time"
    clock.pass_by(1.0)
    assert meter.close_row(trainer, module, 0) == {}, "no images"
    meter.waiting.start()
    clock.pass_by(10.0)  # a validation
    meter.open_row(trainer)
    clock.pass_by(0.1)
    meter.waiting.stop()
    clock.pass_by(0.4)
    row = meter.close_row(trainer, module, 30)
    assert row == pytest.approx(
        {"train/images_per_second": 60.0, "train/mfu": 60 * (meter.flops or 0) / 2e9, "train/data_wait": 1.0}
    )
    assert meter.rows == [row]


def test_measuring_draws_no_random_number_of_the_training(make_trainer: MakeTrainer) -> None:
    flops.measured_peak_flops.cache_clear()
    trainer, meter, data = make_trainer(), ThroughputMeter(), Slowly()
    data.setup()
    trainer.datamodule = data  # type: ignore[attr-defined]
    network = VisionTransformer(image_size=8, patch_size=4, in_channels=1, num_classes=10, dim=16, depth=1, heads=2)
    before = torch.get_rng_state()
    meter._measure(trainer, network)
    assert meter._peak is not None
    assert torch.equal(torch.get_rng_state(), before)


class Event:
    """A CUDA event: its time is known after a later one was waited for."""

    order, reached, made = 0, 0, 0
    milliseconds = 0.0

    def __init__(self, enable_timing: bool = False) -> None:
        self.enable_timing = enable_timing

    def record(self) -> None:
        Event.made += 1
        self.order, self.at = Event.made, Event.milliseconds

    def synchronize(self) -> None:
        Event.reached = max(Event.reached, self.order)

    def elapsed_time(self, end: "Event") -> float:
        assert self.enable_timing
        assert max(self.order, end.order) <= Event.reached
        return end.at - self.at


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_waits_add_up_on_either_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(torch.cuda, "Event", Event)

    def pass_by(seconds: float) -> None:
        clock.pass_by(seconds)
        Event.milliseconds += 1000 * seconds

    timer = WaitTimer(torch.device(kind))
    timer.stop()  # nothing was begun
    for waited in (0.5, 2.0, 4.0):
        timer.start()
        pass_by(waited)
        timer.stop()
        pass_by(1.0)
        timer.stop()
    assert timer.take() == pytest.approx(6.5)
    assert timer.take() == 0.0


def test_a_summary_is_of_the_rows_since_the_last_one_without_the_first_of_all() -> None:
    meter = ThroughputMeter()

    def summary(*speeds: float) -> list[str]:
        meter.rows += [{"train/images_per_second": speed} for speed in speeds]
        return meter.summary()

    assert summary(10.0) == ["10 images/s"], "there is no other"
    assert meter.medians() == {"images_per_second": 10.0}
    assert summary(20.0, 40.0) == ["30 images/s"]
    assert meter.medians() == {"images_per_second": 30.0}
    assert summary() == ["40 images/s"]
    assert summary(70.0, 90.0) == ["80 images/s"]
    meter = ThroughputMeter()
    assert summary(10.0, 20.0, 40.0) == ["30 images/s"]


def test_other_checkpoints_take_no_known_time(make_trainer: MakeTrainer) -> None:
    assert checkpoint_seconds(make_trainer(callbacks=[ModelCheckpoint()], enable_checkpointing=True)) == 0.0


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
