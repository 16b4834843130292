"""From configuration nodes to objects that fit each other, and what is reported of a run at its start and end."""

import logging
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer, WeightAveraging
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import DoublePrecision

from teachers import FROM_DATA, VIT, save_run
from vitlab.config.schema import Node
from vitlab.models.vit import VisionTransformer
from vitlab.runs.metrics_file import MetricsFile
from vitlab.storage import safe_load
from vitlab.training import build, losses
from vitlab.training.build import end_reason
from vitlab.training.checkpoint_files import AtomicFiles
from vitlab.training.checkpoints import BestCheckpoint, LastCheckpoint
from vitlab.training.classifier import logged_scores
from vitlab.training.monitor import Monitor
from vitlab.training.progress_bar import ProgressBar
from vitlab.weights.load import IncompatibleWeights

Configure = Callable[..., Node]
TINY = ["model.dim=16", "model.depth=1", "model.heads=2", "schedule.warmup_steps=0", "logger=csv"]
TINY += ["trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def _restored() -> Any:
    yield
    torch.use_deterministic_algorithms(False)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def parts(config: Node, folder: Path) -> tuple[Any, Any, Any]:
    data = build.build_data(config["data"])
    module = build.build_classifier(
        config["model"], data, config["classifier"], optimizer=config["optimizer"], schedule=config["schedule"]
    )
    run = build.build_trainer(config["trainer"], run_dir=folder, logger=config["logger"], callbacks=config["callbacks"])
    return data, module, run


def test_the_network_has_the_channels_and_classes_of_the_data(configure: Configure) -> None:
    config = configure("data=fake", "data.source.channels=2", "data.source.num_classes=7", "image_size=16", *TINY)
    data = build.build_data(config["data"])
    module = build.build_classifier(config["model"], data, config["classifier"])
    assert data.samples["train"] > 0, "loaded already"
    assert isinstance(module.network, VisionTransformer)
    assert module(torch.zeros(3, 2, 16, 16)).shape == (3, 7)
    assert module.num_classes == 7


@pytest.mark.parametrize(("key", "value", "true"), [("num_classes", 5, 10), ("in_channels", 3, 1)])
def test_a_model_that_contradicts_the_data_is_refused(key: str, value: int, true: int, configure: Configure) -> None:
    config = configure(*TINY)
    data = build.build_data(config["data"])
    with pytest.raises(ValueError, match=rf"model\.{key}={value}, but the data has {true}; leave model\.{key} out"):
        build.build_classifier({**config["model"], key: value}, data, config["classifier"])
    build.build_classifier({**config["model"], key: true}, data, config["classifier"])


def test_options_of_the_classifier_reach_it(configure: Configure) -> None:
    config = configure("classifier.loss=sigmoid", "classifier.label_smoothing=0.25", *TINY)
    module = build.build_classifier(config["model"], build.build_data(config["data"]), config["classifier"])
    assert (module.losses.name, module.losses.label_smoothing) == ("sigmoid", 0.25)
    assert module.make_optimizer is None


def test_balanced_class_weights_are_computed_from_the_images_to_train_on(configure: Configure) -> None:
    config = configure("classifier.class_weights=balanced", "data.max_train_samples=301", *TINY)
    data = build.build_data(config["data"])
    module = build.build_classifier(config["model"], data, config["classifier"])
    expected = losses.balanced_weights(data.split("train").labels, 10)
    assert module.losses.class_weights == expected
    assert len(set(expected)) > 1
    with pytest.raises(ValueError, match=r"classifier\.class_weights=balanced needs the data's labels"):
        losses.Loss("softmax", 10, class_weights="balanced")


def test_the_rate_is_scaled_by_the_configured_batch_and_a_schedule_counts_epochs(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batch = [
        "batch_size=96",
        "classifier.base_batch_size=512",
        "trainer.accumulate_grad_batches=3",
        "optimizer.lr=1e-3",
    ]
    schedule = [
        "schedule=timm_cosine",
        "trainer.max_epochs=4",
        "schedule.warmup_epochs=2",
        "schedule.warmup_steps=null",
    ]
    data, module, run = parts(configure(*TINY, *batch, *schedule), tmp_path)
    run.datamodule = data
    module.trainer = run
    data.trainer = run
    with caplog.at_level(logging.INFO, logger="vitlab"):
        made = module.configure_optimizers()
    peak = 1e-3 * 96 / 512
    assert "peak learning rates: optimizer.lr x 0.1875, which is batch_size / classifier.base_batch_size" in caplog.text
    assert f"{peak:.3g}" in caplog.text, "in the table of groups"
    group, steps = made["optimizer"].param_groups[0], data.steps_per_epoch
    assert group["initial_lr"] == pytest.approx(peak)
    factor = made["lr_scheduler"]["scheduler"].lr_lambdas[0]
    used = [factor(epoch * steps) * peak for epoch in range(4)]
    assert used == pytest.approx([1e-6, (1e-6 + peak) / 2, *(1e-5 + (peak - 1e-5) * x for x in (0.5, 0.5 - 0.5**1.5))])
    assert factor(2 * steps - 1) == factor(steps)


def test_metrics_are_always_written_and_every_chosen_logger_and_callback_is_there(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure(*TINY[:-1], "trainer.enable_progress_bar=true", "logger=[csv,tensorboard]")
    run = build.build_trainer(
        config["trainer"], run_dir=tmp_path, logger=config["logger"], callbacks=config["callbacks"]
    )
    assert [type(logger) for logger in run.loggers] == [MetricsFile, TensorBoardLogger]
    found = {type(callback) for callback in run.callbacks}  # type: ignore[attr-defined]
    assert {Monitor, BestCheckpoint, ProgressBar} <= found
    assert run.max_epochs == 1
    assert str(run.default_root_dir) == str(tmp_path)


def test_a_metric_that_takes_the_number_of_classes_gets_that_of_the_data() -> None:
    score = {"_target_": "torchmetrics.classification.MulticlassF1Score", "average": "macro"}
    mean = {"_target_": "torchmetrics.MeanMetric"}
    metrics: Any = build.build_metrics({"f1": score, "off": None, "own": {**score, "num_classes": 3}, "mean": mean}, 7)
    assert list(metrics) == ["f1", "own", "mean"]
    assert (metrics["f1"].num_classes, metrics["own"].num_classes) == (7, 3)


def test_the_configuration_is_logged_to_every_logger(configure: Configure, tmp_path: Path) -> None:
    config = configure(*TINY[:-1], "trainer.enable_progress_bar=false", "logger=[csv,tensorboard]")
    data, module, _ = parts(config, tmp_path)
    run = build.build_trainer(config["trainer"], run_dir=tmp_path, logger=config["logger"])
    build.log_run_description(run, module, data, batch_size=64, config=config)
    (logger,) = [each for each in run.loggers if isinstance(each, TensorBoardLogger)]
    assert isinstance(logger.hparams, dict)
    assert logger.hparams["batch_size"] == config["batch_size"]


def test_a_run_without_new_steps_has_no_speed(configure: Configure, tmp_path: Path) -> None:
    data, module, run = parts(configure(*TINY), tmp_path)
    results = build.best_scores(run, module, data)
    assert (results["steps"], results["images_per_second"], results["checkpoint_seconds"]) == (0, 0.0, None)
    assert results["val/count"] == 144


def test_without_loggers_nothing_is_written_and_without_a_bar_there_is_none(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure(*TINY)
    run = build.build_trainer(config["trainer"], run_dir=tmp_path)
    assert run.loggers == []
    assert not any(isinstance(callback, ProgressBar) for callback in run.callbacks)  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []
    run = build.build_trainer({**config["trainer"], "enable_progress_bar": True}, run_dir=tmp_path)  # as evaluate.py
    assert any(isinstance(callback, ProgressBar) for callback in run.callbacks)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("overrides", "reported"),
    [
        ([], "batch_size=64: 1 device(s) x 1 accumulated x 64 images; 21 steps an epoch; cpu, precision 32-true"),
        (["data.drop_last=true"], "64 images; 20 steps an epoch"),
        (["batch_size=50", "trainer.accumulate_grad_batches=4"], "1 device(s) x 4 accumulated x 12.5 images; 26 steps"),
    ],
)
def test_the_sizes_of_everything_are_reported_before_the_start(
    overrides: list[str], reported: str, configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure(*TINY, "data.val_fraction=0.1", *overrides)
    data, module, run = parts(config, tmp_path)
    with caplog.at_level(logging.INFO, logger="vitlab"):
        build.log_run_description(run, module, data, batch_size=config["batch_size"], config=config)
    assert reported in caplog.text
    assert "1,293 images to train on, 144 to validate, 360 to test" in caplog.text
    assert f"{sum(p.numel() for p in module.network.parameters()):,} parameters, 10 classes" in caplog.text


@pytest.mark.parametrize(("size", "is_reported"), [(8, False), (32, False), (64, True)])
def test_images_that_are_enlarged_many_times_are_reported(
    size: int, is_reported: bool, configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure(*TINY, f"image_size={size}", f"model.patch_size={size}")
    data, module, run = parts(config, tmp_path)
    build.log_run_description(run, module, data, batch_size=config["batch_size"], config=config)
    line = "image_size=64 enlarges images of 8 x 8 pixels 8 times; use image_size=8 with a smaller patch, or"
    assert (line in caplog.text) == is_reported


def test_results_of_a_training_count_what_it_took(configure: Configure, tmp_path: Path) -> None:
    data, module, run = parts(config := configure(*TINY), Path(tmp_path))
    run.fit(module, data)
    found = build.best_scores(run, module, data)
    assert (found["steps"], found["epochs"], found["devices"], found["device"]) == (21, 1, 1, "cpu")
    assert found["images"] == found["samples"]["train"] == 1293
    assert found["val/count"] == 144
    assert found["checkpoint"] == f"{config['run_dir']}/checkpoints/best.ckpt"
    assert found["parameters"] == sum(p.numel() for p in module.network.parameters())


def test_a_training_without_validation_is_validated_at_its_end(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, module, run = parts(configure(*TINY, "trainer.max_steps=2"), Path(tmp_path))
    run.fit(module, data)
    capsys.readouterr()
    found = build.best_scores(run, module, data)
    assert capsys.readouterr().out == "", "no table of Lightning's"
    assert (found["steps"], found["epochs"], found["val/count"]) == (2, 1, 144)
    assert Path(found["checkpoint"]).is_file()


def test_of_averages_the_weights_are_tested_too(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, module, run = parts(configure(*TINY, "callbacks=ema"), tmp_path)
    run.fit(module, data)
    averages = {name: weight.clone() for name, weight in module.state_dict().items()}
    file = Path(build.best_scores(run, module, data)["checkpoint"])
    capsys.readouterr()
    raw = build.raw_scores(run, module, data, file)
    assert capsys.readouterr().out == "", "no table of Lightning's"
    assert module.split == "test"
    assert all(torch.equal(weight, averages[name]) for name, weight in module.state_dict().items())
    module.load_state_dict(safe_load.load_checkpoint(file)["current_model_state"])
    run.test(module, data, verbose=False)
    assert raw["raw/loss"] == logged_scores(run, "test")["test/loss"]
    run.callbacks = [c for c in run.callbacks if not isinstance(c, WeightAveraging)]
    assert build.raw_scores(run, module, data, file) == {}


def test_the_end_is_reported_in_a_line_for_each_split_that_was_scored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = {"val/acc": 0.5, "val/correct": 72, "val/count": 144, "val/loss": 1.23456}
    with caplog.at_level(logging.INFO, logger="vitlab"):
        build.log_results(results, tmp_path)
    assert [r.getMessage() for r in caplog.records] == [
        "val accuracy 50.00 % (72 of 144)   loss 1.2346",
        f"run folder: {tmp_path}",
    ]


def test_too_little_space_for_the_checkpoints_is_a_warning(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(*TINY)
    data, module, run = parts(config, tmp_path)
    usage = shutil.disk_usage(tmp_path)
    # weights and two moments of 4 bytes, in last.ckpt, previous.ckpt, a temporary file and best.ckpt
    needed = 4 * 3 * 4 * sum(p.numel() for p in module.network.parameters())
    for free, reported in ((usage.free, 0), (needed, 0), (needed - 1, 1), (1000, 1)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        caplog.clear()
        build.log_run_description(run, module, data, batch_size=64, config=config)
        warnings = [record for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == reported
    assert f"{tmp_path} has 0.0 GB free, and its checkpoints take about" in warnings[0].getMessage()


def test_a_network_begins_from_weights_and_says_what_became_of_them(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes: dict[str, Any] = {"image_size": 8, "patch_size": 2, "dim": 64, "depth": 1, "heads": 1, "num_classes": 5}
    source = VisionTransformer(**sizes)
    torch.save(source.state_dict(), file := tmp_path / "w.pth")
    config = configure("model=auto", f"model.weights={file}", "data.std=[0.5]", "logger=csv")
    data = build.build_data(config["data"])
    with caplog.at_level("INFO"):
        module = build.build_classifier(config["model"], data, config["classifier"], weights=config["weights"])
    loaded: Any = module.network
    assert torch.equal(loaded.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)
    assert loaded.head.weight.shape == (10, 64)
    assert "3 -> 1 channels (summed)" in caplog.text
    assert "preprocessing of images: data.{mean=[0.3054], std=[0.5]" in caplog.text
    assert "the weights have no record of their preprocessing" in caplog.text
    fresh: Any = build.build_classifier(config["model"], data, config["classifier"]).network
    assert not torch.equal(fresh.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)


class Stop(Callback):
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= 2


class Model(BoringModel):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", torch.tensor(1.0))


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("max_epochs", {"max_epochs": 2}),
        ("max_steps", {"max_epochs": -1, "max_steps": 3}),
        ("max_time", {"max_epochs": -1, "max_time": {"seconds": 0}}),
        ("early_stopping", {"max_epochs": 9, "callbacks": [EarlyStopping("loss", patience=1)]}),
        ("callback", {"max_epochs": 9, "callbacks": [Stop()], "min_steps": 1}),
        ("callback", {"max_epochs": -1, "callbacks": [Stop()], "min_steps": 1, "max_time": {"hours": 1}}),
        ("callback", {"max_epochs": 9, "callbacks": [Stop(), Timer()], "min_steps": 1}),  # a timer without an end
    ],
)
def test_the_reason_is_the_setting_that_ended_it(reason: str, options: dict[str, Any]) -> None:
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(
        accelerator="cpu",
        limit_train_batches=4,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        **quiet,
        **options,
    )
    trainer.fit(Model())
    assert end_reason(trainer) == reason


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({"save_top_k": 1}, 4),
        ({"save_top_k": 2}, 5),
        ({"save_top_k": 1, "save_last": True}, 5),
        ({"save_top_k": -1}, 4),  # of all at least one
        ({"save_top_k": 0, "monitor": None}, 3),
        (None, 3),
    ],
    ids=str,
)
def test_the_space_needed_counts_the_files_of_every_callback(
    options: Any,
    files: int,
    configure: Configure,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, module, _ = parts(config := configure(*TINY), tmp_path)
    callback = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "monitor": "val/acc", **(options or {})}
    trainer = {**config["trainer"], "enable_checkpointing": options is not None}
    run = build.build_trainer(trainer, run_dir=tmp_path, callbacks={"a": callback if options else None})
    needed = files * 3 * 4 * sum(p.numel() for p in module.network.parameters())
    usage = shutil.disk_usage(tmp_path)
    for free in (needed, needed - 1):
        caplog.clear()
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        build.log_run_description(run, module, data, batch_size=64, config=config)
        assert ("its checkpoints take about" in caplog.text) == (free < needed)


def test_speeds_and_the_time_of_a_checkpoint_are_those_measured(configure: Configure, tmp_path: Path) -> None:
    data, module, run = parts(configure(*TINY, "data.val_fraction=0", "objective=train/loss"), tmp_path)
    (monitor,) = [c for c in run.callbacks if isinstance(c, Monitor)]
    (last,) = [c for c in run.callbacks if isinstance(c, LastCheckpoint)]
    monitor.meter.rows = [{"train/images_per_second": speed} for speed in (9e9, 123.456)]  # the first has the warm-up
    last.seconds, last.saves = 1.0, 3
    found = build.best_scores(run, module, data)
    assert (found["checkpoint_seconds"], found["images_per_second"]) == (0.333, 123.5)


def test_the_data_set_is_named_as_it_is_loaded(configure: Configure, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vitlab"):
        build.build_data(configure(*TINY)["data"])
    assert "loading the data: digits" in caplog.text


def test_plugins_of_the_trainer_are_one_or_several_and_its_files_are_always_atomic(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure(*TINY)
    one = {"_target_": "lightning.pytorch.plugins.environments.LightningEnvironment"}
    two = {"_target_": "lightning.pytorch.plugins.precision.DoublePrecision"}
    for plugins in (None, one, [one, two]):
        run = build.build_trainer({**config["trainer"], "precision": None, "plugins": plugins}, run_dir=tmp_path)
        assert isinstance(run.strategy.checkpoint_io, AtomicFiles)
        assert isinstance(run.precision_plugin, DoublePrecision) == isinstance(plugins, list)


def test_signals_are_left_to_the_run_and_lightning_says_only_what_is_wrong(
    configure: Configure, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    _, module, run = parts(configure(*TINY), tmp_path)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    seen: list[Any] = []

    class Look(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.extend(signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT))
            trainer.should_stop = True

    run.callbacks.insert(0, Look())
    run.fit(module, build.build_data(configure(*TINY)["data"]))
    assert seen == handlers
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)
        assert logging.getLogger(name).isEnabledFor(logging.WARNING)
    recwarn.clear()
    for message in ("Checkpoint directory /runs/x exists and is not empty.", "LeafSpec(*) is deprecated"):
        warnings.warn(message, stacklevel=1)
    assert not recwarn.list


def test_weights_without_the_data_s_head_are_refused_where_it_is_needed(configure: Configure, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"image_size": 8, "patch_size": 2, "dim": 64, "depth": 1, "heads": 1, "in_channels": 1}
    for classes in (5, 10):
        network: Any = VisionTransformer(**sizes, num_classes=classes)
        torch.save(network.state_dict(), file := tmp_path / f"{classes}.pth")
        config = configure("model=auto", f"model.weights={file}", "logger=csv")
        data = build.build_data(config["data"])
        options = {"weights": config["weights"], "own_head": True}
        if classes == 10:
            module: Any = build.build_classifier(config["model"], data, {}, **options)
            assert torch.equal(module.network.head.weight, network.head.weight)
        else:
            with pytest.raises(IncompatibleWeights, match=r"5.pth would get a new one: .*probe=linear or knn"):
                build.build_classifier(config["model"], data, {}, **options)


def test_preprocessing_other_than_that_of_the_weights_is_reported(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = {"_target_": "vitlab.models.vit.VisionTransformer", "image_size": 8}
    node |= {key: value for key, value in VIT.items() if key not in FROM_DATA}
    source = save_run(tmp_path / "run", VisionTransformer(image_size=8, **VIT), node)  # mean 0.4, std 0.2
    for std, reported in (("0.2", "as in its run"), ("0.3", "as in its run, except for std=[0.2]")):
        config = configure("model=auto", f"model.weights={source}", f"data.std=[{std}]", "logger=csv")
        data = build.build_data(config["data"])
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="vitlab"):
            build.build_classifier(config["model"], data, {}, weights=config["weights"])
        settings = f"data.{{mean=[0.4], std=[{std}], interpolation=bicubic}}"
        assert caplog.messages[-1] == f"preprocessing of images: {settings}: {reported}"


def test_the_results_of_all_splits_come_in_the_order_of_the_run(tmp_path: Path, caplog: Any) -> None:
    scores = {"acc": 0.25, "correct": 1, "count": 4, "loss": 2.0}
    results = {f"{split}/{k}": v for split in ("test", "raw", "train", "val") for k, v in scores.items()}
    with caplog.at_level(logging.INFO, logger="vitlab"):
        build.log_results(results, tmp_path)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:-1] == [
        f"{split} accuracy 25.00 % (1 of 4)   loss 2.0000" for split in ("train", "val", "test", "raw")
    ]
