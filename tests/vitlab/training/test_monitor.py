"""The Monitor's rows are correct, and the best checkpoint is the best."""

import csv
import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.digits import digits
from vitlab.models.vit import VisionTransformer
from vitlab.runs.metrics_file import MetricsFile
from vitlab.training import schedules
from vitlab.training.checkpoints import BestCheckpoint
from vitlab.training.classifier import Classifier, logged_scores
from vitlab.training.monitor import Monitor
from vitlab.training.nonfinite import NonFinite
from vitlab.training.progress_bar import ProgressBar
from vitlab.training.throughput import ThroughputMeter

MakeTrainer = Callable[..., Trainer]
SIZES = {"image_size": 8, "patch_size": 4, "dim": 16, "depth": 1, "heads": 2, "num_classes": 10, "in_channels": 1}


def data() -> DataModule:
    """101 images in 4 steps."""
    return DataModule(source=digits, max_train_samples=101, batch_size=30, augment=Augment(), image_size=8, seed=0)


def classifier(lr: float = 0.1, schedule: Any = schedules.constant) -> Classifier:
    torch.manual_seed(0)
    make = partial(torch.optim.SGD, lr=lr)
    return Classifier(VisionTransformer(**SIZES), num_classes=10, optimizer=make, schedule=schedule)  # type: ignore[arg-type]


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    with (folder / "metrics.csv").open(newline="") as lines:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(lines) if row.get(name)]


def fit(make: MakeTrainer, folder: Path, module: Classifier, *callbacks: Callback, **knobs: Any) -> Trainer:
    given: dict[str, Any] = {"max_epochs": 2, "log_every_n_steps": 2, **knobs}
    resumed = given.pop("ckpt_path", None)
    monitored = [*callbacks, *([] if any(isinstance(c, Monitor) for c in callbacks) else [Monitor()])]
    checkpoints = any(isinstance(c, BestCheckpoint) for c in callbacks)
    logger = [MetricsFile(folder=str(folder))]
    trainer = make(logger=logger, callbacks=monitored, enable_checkpointing=checkpoints, **given)
    trainer.fit(module, data(), ckpt_path=resumed, weights_only=True)
    return trainer


# --------------------------------------------------------------------------------------------------------- monitor


class Waits(TorchFunctionMode):
    """Count the operations that would wait for a device if the tensors were on one, by their file.

    Draws and orders of the data, made on the CPU, don't count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        masked = name in ("__getitem__", "__setitem__") and isinstance(args[1], torch.Tensor)
        masked = masked and args[1].dtype in (torch.bool, torch.uint8)
        reads = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero", "unique")
        if masked or name in (*reads, "masked_select", "bincount", "equal", "is_nonzero"):
            files = [Path(frame.filename) for frame in traceback.extract_stack()[:-1]]
            self.counts[next(file.name for file in reversed(files) if "torch" not in file.parts)] += 1
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device_but_to_know_that_it_is_finite(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Loss, gradient norm, metrics, logging and the progress bar: between two rows none of them asks for a number."""
    counts = []
    for steps in (6, 26):
        source = DataModule(source=digits, batch_size=30, augment=Augment(mixup=0.4), image_size=8, seed=0)
        watchers = [Monitor(), NonFinite(), ProgressBar()]
        options: dict[str, Any] = {"max_steps": steps, "log_every_n_steps": 40, "limit_val_batches": 0}
        options |= {"gradient_clip_val": 1.0, "enable_progress_bar": True, "max_epochs": -1}
        trainer = make_trainer(logger=[MetricsFile(folder=str(tmp_path))], callbacks=watchers, **options)
        with Waits() as waits:
            trainer.fit(classifier(), source)
        assert trainer.global_step == steps
        counts.append(waits.counts)
    in_steps = counts[1] - counts[0]
    on_cpu = {"sampler.py", "_augment.py", "beta.py", "distribution.py"}
    assert {name: count for name, count in in_steps.items() if name not in on_cpu} == {"nonfinite.py": 20}


@pytest.mark.parametrize("parts", [1, 3])
def test_a_row_comes_every_n_optimizer_steps_and_at_an_epochs_end(
    parts: int, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    fit(make_trainer, tmp_path, module := classifier(), log_every_n_steps=3, accumulate_grad_batches=parts)
    assert module.train_loss.weight == 0, "no image is in two rows"
    assert [step for step, _ in logged(tmp_path, "train/loss")] == [3, 4, 6, 8]
    assert [step for step, _ in logged(tmp_path, "images")] == [3, 4, 4, 6, 8, 8], "validations have them too"
    assert [images for step, images in logged(tmp_path, "images") if step % 4 == 0] == [101, 101, 202, 202]
    assert logged(tmp_path, "epoch") == [(3, 1), (4, 1), (4, 1), (6, 2), (8, 2), (8, 2)]
    norms = logged(tmp_path, "train/gradient_norm")
    assert [step for step, _ in norms] == [3, 4, 6, 8]
    assert min(norm for _, norm in norms) > 0


def test_a_row_of_training_comes_before_each_validation_and_no_step_is_in_two(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[Trainer] = []
    monkeypatch.setattr(ThroughputMeter, "prepare", lambda self, trainer, network: prepared.append(trainer))
    trainer = fit(make_trainer, tmp_path, classifier(), max_epochs=1, log_every_n_steps=3, val_check_interval=2)
    with (tmp_path / "metrics.csv").open(newline="") as lines:
        rows = [(int(row["step"]), "val/acc" if row["val/acc"] else "train/loss") for row in csv.DictReader(lines)]
    assert rows == [(2, "train/loss"), (2, "val/acc"), (3, "train/loss"), (4, "train/loss"), (4, "val/acc")]
    trainer.test(classifier(), data(), verbose=False)
    assert prepared == [trainer], "for the training, not for the test"


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
@pytest.mark.parametrize("parts", [1, 3])
def test_the_training_loss_is_the_mean_over_the_images_since_the_last_row(
    parts: int, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    module = classifier(lr=1e-20)  # nothing moves: each image has one loss
    torch.nn.init.normal_(module.get_parameter("network.head.weight"))
    fit(make_trainer, tmp_path, module, log_every_n_steps=100, accumulate_grad_batches=parts)
    loaded = data()
    loaded.setup()
    train = loaded._splits["train"]
    assert train.images is not None
    with torch.inference_mode():
        expected = F.cross_entropy(module.eval()(loaded._prepare(train.images)), train.labels).item()
    assert [step for step, _ in logged(tmp_path, "train/loss")] == [4, 8]
    assert [loss for _, loss in logged(tmp_path, "train/loss")] == pytest.approx([expected] * 2, rel=1e-5)


def test_the_rate_logged_is_the_one_that_the_step_used(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    schedule = partial(schedules.warmup_linear, warmup_steps=2)
    fit(make_trainer, tmp_path, classifier(lr=0.6, schedule=schedule), log_every_n_steps=1)
    expected = [0.3, 0.6, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    for group in ("decay", "no_decay"):
        assert [rate for _, rate in logged(tmp_path, f"lr/{group}")] == pytest.approx(expected)


def test_the_speed_counts_all_of_training_and_nothing_of_validation(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    class Slow(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            time.sleep(0.02)

        def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            time.sleep(0.3)

    monitor = Monitor()
    started = time.perf_counter()
    fit(make_trainer, tmp_path, classifier(), Slow(), monitor, max_epochs=5, log_every_n_steps=3)
    assert monitor.images == 505
    images = sorted({count for _, count in logged(tmp_path, "images")})
    counts = [new - old for old, new in zip([0, *images], images, strict=False)]
    seconds = sum(n / row["train/images_per_second"] for n, row in zip(counts, monitor.meter.rows, strict=True))
    assert 20 * 0.02 <= seconds < time.perf_counter() - started - 5 * 0.3
    assert all(speed > 0 for _, speed in logged(tmp_path, "train/images_per_second"))


def test_the_check_before_training_is_logged_nowhere(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    fit(make_trainer, tmp_path, classifier(), num_sanity_val_steps=2)
    assert [step for step, _ in logged(tmp_path, "val/acc")] == [4, 8]


def test_a_run_that_is_resumed_counts_on_and_repeats_no_row(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    complete, parts = tmp_path / "complete", tmp_path / "parts"
    complete.mkdir()
    parts.mkdir()
    fit(make_trainer, complete, classifier(), max_epochs=3)
    saved = str(tmp_path / "one.ckpt")
    fit(make_trainer, parts, classifier(), max_epochs=1).save_checkpoint(saved)
    MetricsFile(folder=str(parts)).log_metrics({"train/loss": 9.0}, step=5)  # a step that was lost in a crash
    monitor = Monitor()
    fit(make_trainer, parts, classifier(), monitor, max_epochs=3, ckpt_path=saved)
    assert monitor.images == 303
    for name in ("train/loss", "images", "val/acc", "lr/decay", "train/gradient_norm"):
        assert logged(parts, name) == logged(complete, name), name


def test_sums_of_other_numbers_of_ranks_are_taken_by_one(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = [
        {"mean_value": torch.tensor(v, dtype=torch.float64), "weight": torch.tensor(w)} for v, w in ((6, 3), (1, 4))
    ]
    state: dict[str, Any] = {"images": 7, "window_images": 7, "last_loss": 0.5, "rates": {}, "gradient_norm": None}
    for ranks, rank, expected in ((1, 0, (7, 7)), (2, 0, (6, 3)), (2, 1, (1, 4)), (4, 0, (7, 7)), (4, 1, (0, 0))):
        monkeypatch.setattr(Trainer, "world_size", ranks)
        monkeypatch.setattr(Trainer, "global_rank", rank)
        module, trainer, monitor = classifier(), make_trainer(), Monitor()
        trainer.state.fn = TrainerFn.FITTING
        monitor.on_load_checkpoint(trainer, module, {"global_step": 3, "monitor": {**state, "losses": sums, "rows": 2}})
        assert [float(module.train_loss.mean_value), float(module.train_loss.weight)] == [*expected], (ranks, rank)
        assert (monitor.images, monitor._step, monitor._rows) == (7, 3, 2)


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
def test_rows_are_dropped_also_where_the_checkpoint_is_loaded_after_the_setup(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under FSDP2."""
    monkeypatch.setattr(SingleDeviceStrategy, "restore_checkpoint_after_setup", True)
    MetricsFile(folder=str(tmp_path)).log_metrics({"train/loss": 9.0}, step=1)  # of a former start
    first = fit(make_trainer, tmp_path, classifier(), max_epochs=1, log_every_n_steps=4)
    first.save_checkpoint(saved := tmp_path / "one.ckpt")
    rows = logged(tmp_path, "images")
    assert [step for step, _ in rows] == [4, 4], "a row of training, and one of validation"
    MetricsFile(folder=str(tmp_path)).log_metrics({"train/loss": 9.0}, step=5)
    fit(make_trainer, tmp_path, classifier(), max_epochs=2, log_every_n_steps=4, ckpt_path=str(saved))
    assert logged(tmp_path, "images")[:2] == rows
    assert [step for step, _ in logged(tmp_path, "train/loss")] == [4, 8]


def test_without_metrics_csv_a_checkpoint_counts_no_rows(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    for logger, rows in (([], 0), ([MetricsFile(folder=str(tmp_path))], 3)):
        trainer = make_trainer(logger=logger, callbacks=[Monitor()], max_epochs=1, log_every_n_steps=2)
        module = classifier()
        trainer.fit(module, data())
        trainer.save_checkpoint(tmp_path / "x.ckpt")
        saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["monitor"]
        assert (saved["rows"], saved["gradient_norm"]) == (rows, module.gradient_norm)


def test_a_line_of_text_reports_of_each_epoch(
    make_trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="vitlab"):
        fit(make_trainer, tmp_path, classifier())
    lines = [record.getMessage() for record in caplog.records if record.name == "vitlab.training.monitor"]
    assert len(lines) == 2
    accuracy = logged(tmp_path, "val/acc")[1][1]
    assert lines[1].startswith("epoch 2/2   step 8   train/loss ")
    assert f"val/acc {accuracy:.4f}" in lines[1]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="vitlab"):
        fit(make_trainer, tmp_path, classifier(), max_epochs=-1, max_steps=4, limit_val_batches=0)
    lines = [record.getMessage() for record in caplog.records if record.name == "vitlab.training.monitor"]
    assert [line.split("   ")[:2] for line in lines] == [["epoch 1", "step 4"]], "without a validation too, and no /-1"


def test_a_test_is_logged_under_the_splits_name(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    module = classifier()
    trainer = fit(make_trainer, tmp_path, module)
    trainer.test(module, data(), verbose=False)
    assert [step for step, _ in logged(tmp_path, "test/acc")] == [8]
    found = logged_scores(trainer, "test")
    assert found.keys() == {"test/acc", "test/acc5", "test/loss", "test/correct", "test/count"}
    assert [type(found[f"test/{name}"]) for name in ("count", "correct", "acc")] == [int, int, float]
    assert found["test/count"] == 360
    assert logged_scores(trainer, "val") == {}


# ------------------------------------------------------------------------------------------------- best checkpoint


@pytest.mark.parametrize(("monitor", "mode"), [("val/acc", "max"), ("val/loss", "min"), ("val/loss", "max")])
def test_the_best_checkpoint_is_of_the_best_epoch_with_its_scores(
    monitor: str, mode: str, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    best = BestCheckpoint(dirpath=str(tmp_path), monitor=monitor, mode=mode)
    fit(make_trainer, tmp_path, classifier(), best, max_epochs=4)
    values = logged(tmp_path, monitor)
    step, value = (max if mode == "max" else min)(values, key=lambda pair: pair[1])
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert saved["global_step"] == step
    assert best.best_scores[monitor] == pytest.approx(value)
    assert best.best_scores["val/count"] == 144
    assert dict(logged(tmp_path, "val/correct"))[step] == best.best_scores["val/correct"]
    assert [p.name for p in tmp_path.glob("*.ckpt")] == ["best.ckpt"]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_the_best_scores_are_remembered_by_a_run_that_is_resumed(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    best = BestCheckpoint(dirpath=str(tmp_path), monitor="val/loss", mode="max")  # the first epoch stays the best
    fit(make_trainer, tmp_path, classifier(), best, max_epochs=2).save_checkpoint(tmp_path / "stop.ckpt")
    again = BestCheckpoint(dirpath=str(tmp_path), monitor="val/loss", mode="max")
    fit(make_trainer, tmp_path, classifier(), again, max_epochs=3, ckpt_path=str(tmp_path / "stop.ckpt"))
    assert again.best_scores == best.best_scores
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 4


def test_a_training_that_ends_before_its_first_validation_keeps_its_last_weights_and_says_so(
    make_trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, best = classifier(), BestCheckpoint(dirpath=str(tmp_path), monitor="val/acc", mode="max")
    fit(make_trainer, tmp_path, module, best, max_epochs=-1, max_steps=3)
    assert best.best_model_path == str(tmp_path / "best.ckpt")
    saved = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    assert torch.equal(saved["network.head.weight"], module.get_parameter("network.head.weight"))
    assert "no validation in 3 steps: best.ckpt holds the last weights" in caplog.text
