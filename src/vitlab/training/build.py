"""Build the objects of a training from configuration nodes, and log its description and results."""

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer, WeightAveraging
from lightning.pytorch.callbacks import ProgressBar as LightningBar
from lightning.pytorch.loggers import Logger
from torch import nn
from torchmetrics import Metric

from vitlab.config import allowlist
from vitlab.config.instantiate import build_object
from vitlab.config.schema import Node, arguments_of, parameters
from vitlab.data.datamodule import DataModule
from vitlab.models.vit import VisionTransformer
from vitlab.runs.metrics_file import MetricsFile
from vitlab.storage.safe_load import load_checkpoint
from vitlab.training.averages import copy_complete
from vitlab.training.checkpoint_files import AtomicFiles
from vitlab.training.checkpoints import BestCheckpoint, LastCheckpoint
from vitlab.training.classifier import Classifier, logged_scores
from vitlab.training.losses import balanced_weights
from vitlab.training.monitor import Monitor
from vitlab.training.progress_bar import ProgressBar
from vitlab.weights import load

IGNORED_WARNINGS = (
    "WeightAveraging callback with a model that overrides",  # Classifier does, for FSDP2 alone; of Lightning's own
    "WeightAveraging callback, but loading a checkpoint outside the 'fit'",  # the best checkpoint's averages are tested
    "Checkpoint directory .* exists and is not empty",  # in a resumed run
    "is smaller than the logging interval",  # Monitor logs at each epoch's end as well
    "Total length of `list` across ranks is zero",  # of validation, under data.val_fraction=0
    "LeafSpec.* is deprecated",  # lightning 2.6 under torch 2.14 and later
)

MUCH_LARGER = 8  # times; 32-pixel images are often enlarged to 224 to fine-tune

log = logging.getLogger(__name__)


def build_data(node: Node) -> DataModule:
    """The data module after its setup, with the channels and classes for the model."""
    source = node.get("source") or node
    log.info("loading the data: %s", str(source["_target_"]).rpartition(".")[2])
    datamodule: DataModule = build_object(node)
    datamodule.setup()
    return datamodule


def build_classifier(
    model: Node,
    datamodule: DataModule,
    options: Node,
    *,
    weights: Node | None = None,
    own_head: bool = False,
    optimizer: Node | None = None,
    schedule: Node | None = None,
) -> Classifier:
    """A classifier whose network has the data's channels and classes, and `weights` if these have a source.

    With `own_head` the weights must include the head. Raises `ValueError` if `model` contradicts the data, and
    `weights.load.IncompatibleWeights`.
    """
    from_data = {"num_classes": datamodule.num_classes, "in_channels": datamodule.channels}
    for key, value in from_data.items():
        if model.get(key, value) != value:
            remedy = f"leave model.{key} out to take the data's"
            raise ValueError(f"model.{key}={model[key]}, but the data has {value}; {remedy}")
    if weights and weights.get("source"):
        network = build_pretrained_network(model, from_data, weights, datamodule, own_head=own_head)
    else:
        network = build_object(model, **from_data)
    if isinstance(network, VisionTransformer) and datamodule.train_sizes != {network.image_size}:
        network.patch_embed.strict_img_size = False
    if options.get("class_weights") == "balanced":
        labels = datamodule.split("train").labels
        options = {**options, "class_weights": balanced_weights(labels, datamodule.num_classes)}
    return Classifier(
        network,
        num_classes=datamodule.num_classes,
        optimizer=build_object(optimizer) if optimizer else None,
        schedule=build_object(schedule) if schedule else None,
        batch_size=datamodule.batch_size,
        **{**options, "metrics": build_metrics(options.get("metrics") or {}, datamodule.num_classes)},
    )


def build_metrics(nodes: dict[str, Node | None], num_classes: int) -> dict[str, Metric]:
    """The metrics of `classifier.metrics`; one that takes `num_classes` gets those of the data."""
    metrics: dict[str, Metric] = {}
    for name, node in nodes.items():
        if node is not None:
            takes = "num_classes" in parameters(node["_target_"]) and "num_classes" not in node
            metrics[name] = build_object(node, **({"num_classes": num_classes} if takes else {}))
    return metrics


def build_pretrained_network(
    model: Node, from_data: Node, weights: Node, datamodule: DataModule, *, own_head: bool = False
) -> nn.Module:
    """A network with pretrained weights; logs the source of each tensor, and the preprocessing."""
    allowlist.require_allowed(model)
    network, report = load.load_network(arguments_of(model) | from_data, **arguments_of(weights))
    if own_head and (why := report.new.get("head.weight")):
        raise load.IncompatibleWeights(load.NO_HEAD.format(source=weights["source"], why=why))
    known, now = report.preprocessing.settings(), datamodule.preprocessing()
    # gray images are normalized with the mean over the colors
    wanted = {k: [sum(v) / len(v)] if isinstance(v, list) and len(now[k]) == 1 else v for k, v in known.items()}
    others = ", ".join(f"{key}={value}" for key, value in wanted.items() if now[key] != value)
    settings = ", ".join(f"{key}={value}" for key, value in now.items() if value is not None)
    why = f"as in {report.preprocessing.origin}" if known else "the weights have no record of their preprocessing"
    why += f", except for {others}" if others else ""
    for line in (*report.table().splitlines(), f"preprocessing of images: data.{{{settings}}}: {why}"):
        log.info("%s", line)
    return network


def build_trainer(
    node: Node,
    *,
    run_dir: Path,
    logger: dict[str, Node | None] | None = None,
    callbacks: dict[str, Node | None] | None = None,
) -> Trainer:
    """Lightning's Trainer with the configured loggers and callbacks; with `logger`, always `metrics.csv` too."""
    loggers: list[Logger] = [MetricsFile(folder=str(run_dir))] if logger is not None else []
    loggers += [build_object(inner) for inner in (logger or {}).values() if inner]
    built = [build_object(inner) for inner in (callbacks or {}).values() if inner]
    if not node.get("enable_progress_bar", True):
        built = [callback for callback in built if not isinstance(callback, LightningBar)]
    elif not any(isinstance(callback, LightningBar) for callback in built):
        built.append(ProgressBar())
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{message}")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric"):  # see log_run_description
        logging.getLogger(name).setLevel(logging.WARNING)
    plugins = build_object(node["plugins"]) if node.get("plugins") else []
    trainer: Trainer = build_object(
        {k: v for k, v in node.items() if k != "plugins"},
        logger=loggers or False,
        callbacks=built,
        plugins=[*(plugins if isinstance(plugins, list) else [plugins]), AtomicFiles()],
        default_root_dir=str(run_dir),
    )
    # `vitlab.distributed.signals` handles them: Lightning's SIGTERM handler communicates between ranks at any time
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def log_run_description(
    run: Trainer, module: Classifier, datamodule: DataModule, *, batch_size: int, config: Node
) -> None:
    """Log model, data, steps and devices, and send the configuration to the loggers."""
    each = f"{batch_size / (run.world_size * run.accumulate_grad_batches):.1f}".removesuffix(".0")
    parameters = sum(p.numel() for p in module.network.parameters())
    train, val, test = (f"{datamodule.samples[split]:,}" for split in ("train", "val", "test"))
    model = f"{config['name']}: {parameters:,} parameters, {datamodule.num_classes} classes"
    batch = f"{run.world_size} device(s) x {run.accumulate_grad_batches} accumulated x {each} images"
    steps = f"batch_size={batch_size}: {batch}; {datamodule.steps_per_epoch} steps an epoch"
    log.info("run folder: %s", config["run_dir"])
    log.info("%s; %s images to train on, %s to validate, %s to test", model, train, val, test)
    log.info("%s; %s, precision %s", steps, run.strategy.root_device, run.precision)
    # weights and AdamW's two moments in float32; last.ckpt, previous.ckpt and a temporary file, and the best
    best = [c for c in run.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    files = 3 + sum(1 if c.save_top_k < 0 else c.save_top_k + bool(c.save_last) for c in best)
    needed, free = 3 * 4 * parameters * files, shutil.disk_usage(run.default_root_dir).free
    if free < needed:
        place = f"{run.default_root_dir} has {free / 1e9:.1f} GB free"
        log.warning("%s, and its checkpoints take about %.1f GB; make room, or set hydra.run.dir", place, needed / 1e9)
    size, native = max(datamodule.image_size), datamodule.source.native_size
    if native and size >= MUCH_LARGER * native:
        remedy = f"use image_size={native} with a smaller patch, or larger images"
        log.warning(
            "image_size=%d enlarges images of %d x %d pixels %g times; %s", size, native, native, size / native, remedy
        )
    for logger in run.loggers:
        logger.log_hyperparams(config)


def best_scores(run: Trainer, module: Classifier, datamodule: DataModule) -> Node:
    """Scores on the validation split at the best checkpoint, and the costs of the training."""
    checkpoint = next(c for c in run.checkpoint_callbacks if isinstance(c, BestCheckpoint))
    monitor = next(c for c in run.callbacks if isinstance(c, Monitor))  # type: ignore[attr-defined]
    last = next((c for c in run.callbacks if isinstance(c, LastCheckpoint)), None)  # type: ignore[attr-defined]
    if not checkpoint.best_scores and datamodule.samples["val"]:  # no validation during training
        run.validate(module, datamodule, verbose=False)
        checkpoint.best_scores = logged_scores(run, "val")
    for callback in run.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback._average_model = None  # it would replace the best checkpoint's averages in the test
    device = run.strategy.root_device
    return {
        **checkpoint.best_scores,
        "checkpoint": checkpoint.best_model_path,
        "checkpoint_seconds": round(last.seconds / last.saves, 3) if last and last.saves else None,  # of one
        "steps": run.global_step,
        "epochs": max(run.current_epoch, -(-run.global_step // max(1, datamodule.steps_per_epoch))),  # started
        "images": monitor.images,
        "images_per_second": 0.0,  # of a run without new steps
        **{name: float(f"{value:.4g}") for name, value in monitor.meter.medians().items()},
        "parameters": sum(p.numel() for p in module.network.parameters()),
        "samples": datamodule.samples,
        "devices": run.world_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "precision": str(run.precision),
    }


def raw_scores(run: Trainer, module: Classifier, datamodule: DataModule, file: Path) -> dict[str, float]:
    """Scores on the test split, as `raw/acc`, of the weights that a checkpoint's averages are of; {} if it has none."""
    averages = any(isinstance(c, WeightAveraging) for c in run.callbacks)  # type: ignore[attr-defined]
    if not averages or (weights := (checkpoint := load_checkpoint(file)).get("current_model_state")) is None:
        return {}
    copy_complete(weights, module.state_dict())
    module.split = "raw"
    run.test(module, datamodule, verbose=False)
    module.split = "test"
    copy_complete(checkpoint["state_dict"], module.state_dict())
    return logged_scores(run, "raw")


def log_results(results: dict[str, Any], folder: Path) -> None:
    """Log the scores of each split in a line, and the run folder; `raw` are those of a test without averaging."""
    for split in ("train", "val", "test", "raw"):
        if f"{split}/acc" in results:
            accuracy, loss = results[f"{split}/acc"], results[f"{split}/loss"]
            counts = f"{results[f'{split}/correct']} of {results[f'{split}/count']}"
            log.info("%s accuracy %.2f %% (%s)   loss %.4f", split, 100 * accuracy, counts, loss)
    log.info("run folder: %s", folder)


def end_reason(trainer: Trainer) -> str:
    """The setting that ended a training: `max_epochs`, `max_steps`, `max_time`, `early_stopping`, or `callback`."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    if 0 < steps <= trainer.global_step:
        return "max_steps"
    if 0 < epochs <= trainer.current_epoch:
        return "max_epochs"
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(c, Timer) and (rest := c.time_remaining()) is not None and rest <= 0 for c in callbacks):
        return "max_time"
    if any(isinstance(callback, EarlyStopping) and callback.stopped_epoch for callback in callbacks):
        return "early_stopping"
    return "callback"
