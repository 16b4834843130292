"""From configuration nodes to objects, and from objects to results: what the commands have in common."""

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, WeightAveraging
from lightning.pytorch.loggers import Logger
from torch import nn
from torchmetrics import Metric

from vitlab.config import allowlist
from vitlab.config.instantiate import build_object
from vitlab.config.schema import Node, parameters
from vitlab.data.datamodule import DataModule
from vitlab.runs.metrics_file import MetricsFile
from vitlab.training.checkpoint_files import AtomicFiles
from vitlab.training.checkpoints import BestCheckpoint, LastCheckpoint
from vitlab.training.classifier import Classifier
from vitlab.training.monitor import Monitor, logged_scores
from vitlab.weights import load

log = logging.getLogger(__name__)


def build_data(node: Node) -> DataModule:
    """The data, loaded: what it holds decides how the network looks."""
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
    """A classifier whose network has the data's channels and classes, and `weights` if these name any.

    `own_head`: they must bring the head too. Raises `ValueError` where `model` says other, and
    `weights.loading.DoesNotFit`.
    """
    measured = {"num_classes": datamodule.num_classes, "in_channels": datamodule.channels}
    for key, value in measured.items():
        if model.get(key, value) != value:
            raise ValueError(
                f"model.{key}={model[key]}, but the data has {value}; leave model.{key} out to take the data's"
            )
    if weights and weights.get("source"):
        network = build_pretrained(model, measured, weights, datamodule, own_head=own_head)
    else:
        network = build_object(model, **measured)
    return Classifier(
        network,
        num_classes=datamodule.num_classes,
        optimizer=build_object(optimizer) if optimizer else None,
        schedule=build_object(schedule) if schedule else None,
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


def build_pretrained(
    model: Node, measured: Node, weights: Node, datamodule: DataModule, *, own_head: bool = False
) -> nn.Module:
    """The network that `model` describes, with weights from elsewhere: says what became of each tensor, and how images
    are prepared for them. With `own_head`, a head that would be a new one raises `weights.loading.DoesNotFit`.
    """
    allowlist.require_allowed(model)
    arguments: Node = {k: tuple(v) if isinstance(v, list) else v for k, v in model.items() if not k.startswith("_")}
    options: Node = {key: tuple(value) if isinstance(value, list) else value for key, value in weights.items()}
    network, report = load.load_network(arguments | measured, **options)
    if own_head and (why := report.anew.get("head.weight")):
        raise load.IncompatibleWeights(load.NO_HEAD.format(source=weights["source"], why=why))
    known, now = report.prepared.settings(), datamodule.preprocessing()
    # for grey images, the mean over the colours is what the weights say
    one = {k: [sum(v) / len(v)] if isinstance(v, list) and len(now[k]) == 1 else v for k, v in known.items()}
    others = {key: value for key, value in one.items() if now[key] != value}
    line = ", ".join(f"{key}={value}" for key, value in now.items() if value is not None)
    why = f"as {report.prepared.origin} says" if known else "nothing beside the weights tells how images were"
    if others:
        why += f", but for {', '.join(f'{key}={value}' for key, value in others.items())}"
    for told in (*report.table().splitlines(), f"images are prepared with data.{{{line}}}: {why}"):
        log.info("%s", told)
    return network


def build_trainer(
    node: Node,
    *,
    run_dir: Path,
    logger: dict[str, Node | None] | None = None,
    callbacks: dict[str, Node | None] | None = None,
) -> Trainer:
    """Lightning's Trainer with the loggers and callbacks of the configuration, and `metrics.csv` always."""
    loggers: list[Logger] = [MetricsFile(folder=str(run_dir))] if logger is not None else []
    loggers += [build_object(inner) for inner in (logger or {}).values() if inner]
    made = [build_object(inner) for inner in (callbacks or {}).values() if inner]
    if not node.get("enable_progress_bar", True):
        made = [callback for callback in made if not isinstance(callback, ProgressBar)]
    # ours changes nothing but under FSDP2, which `checks` refuses beside averaged weights
    warnings.filterwarnings("ignore", message=".*WeightAveraging callback with a model that overrides")
    # what is meant: the best checkpoint's averages are tested
    warnings.filterwarnings("ignore", message=".*WeightAveraging callback, but loading a checkpoint outside the 'fit'")
    # it does, in a run that goes on
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty")
    # the Monitor logs at each epoch's end as well
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval")
    # what it tells at INFO is told by `describe`, or is advertisement
    for talker in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(talker).setLevel(logging.WARNING)
    # lightning 2.6 under torch 2.14 and later; nothing a user could change
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    plugins = build_object(node["plugins"]) if node.get("plugins") else []
    made_trainer: Trainer = build_object(
        {k: v for k, v in node.items() if k != "plugins"},
        logger=loggers or False,
        callbacks=made,
        plugins=[*(plugins if isinstance(plugins, list) else [plugins]), AtomicFiles()],
        default_root_dir=str(run_dir),
    )
    # Signals are ours (`vitlab.distributed.signals`): Lightning's handler of SIGTERM communicates between ranks wherever they are
    made_trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return made_trainer


def log_run_description(
    run: Trainer, module: Classifier, datamodule: DataModule, *, batch_size: int, config: Node
) -> None:
    """Says what is about to be trained on what, and tells the loggers the configuration."""
    parts = run.world_size * run.accumulate_grad_batches
    each = f"{batch_size // parts}" if batch_size % parts == 0 else f"{batch_size / parts:.1f}"
    parameters = sum(p.numel() for p in module.network.parameters())
    samples = datamodule.samples
    log.info("run folder: %s", config["run_dir"])
    log.info(
        "%s: %s parameters, %d classes; %s images to train on, %s to validate, %s to test",
        config["name"],
        f"{parameters:,}",
        datamodule.num_classes,
        *(f"{samples[split]:,}" for split in ("train", "val", "test")),
    )
    log.info(
        "batch_size=%d: %d device(s) x %d accumulated x %s images; %d steps an epoch; %s, precision %s",
        batch_size,
        run.world_size,
        run.accumulate_grad_batches,
        each,
        datamodule.steps_per_epoch,
        run.strategy.root_device,
        run.precision,
    )
    # weights and AdamW's two moments, in float32; last.ckpt, previous.ckpt and what is being written beside the best
    kept = sum(
        1 if c.save_top_k < 0 else c.save_top_k + bool(c.save_last)
        for c in run.checkpoint_callbacks
        if isinstance(c, ModelCheckpoint)
    )
    needed, free = 3 * 4 * parameters * (kept + 3), shutil.disk_usage(run.default_root_dir).free
    if free < needed:
        log.warning(
            "%s has %.1f GB free, and its checkpoints take about %.1f GB; make room, or set hydra.run.dir",
            run.default_root_dir,
            free / 1e9,
            needed / 1e9,
        )
    for logger in run.loggers:
        logger.log_hyperparams(config)


def best_scores(run: Trainer, module: Classifier, datamodule: DataModule) -> Node:
    """Scores on the validation split at the best checkpoint, and what the training took."""
    checkpoint = next(c for c in run.checkpoint_callbacks if isinstance(c, BestCheckpoint))
    monitor = next(c for c in run.callbacks if isinstance(c, Monitor))  # type: ignore[attr-defined]
    last = next((c for c in run.callbacks if isinstance(c, LastCheckpoint)), None)  # type: ignore[attr-defined]
    if not checkpoint.best_scores:  # training ended before its first validation
        run.validate(module, datamodule, verbose=False)
        checkpoint.best_scores = logged_scores(run, "val")
    for callback in run.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback._average_model = None  # or the best checkpoint's weights would be tested as they are not averaged
    device = run.strategy.root_device
    return {
        **checkpoint.best_scores,
        "checkpoint": checkpoint.best_model_path,
        "checkpoint_seconds": round(last.seconds / last.saves, 3) if last and last.saves else None,  # of one
        "steps": run.global_step,
        "epochs": run.current_epoch,
        "images": monitor.images,
        "images_per_second": 0.0,  # where nothing was left to train on
        **{name: float(f"{value:.4g}") for name, value in monitor.meter.medians().items()},
        "parameters": sum(p.numel() for p in module.network.parameters()),
        "samples": datamodule.samples,
        "devices": run.world_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "precision": str(run.precision),
    }


def log_results(results: dict[str, Any], folder: Path) -> None:
    """The end of a run, in one line each: scores, and where everything lies."""
    for split in ("train", "val", "test"):
        if f"{split}/acc" in results:
            log.info(
                "%s accuracy %.2f %% (%d of %d)   loss %.4f",
                split,
                100 * results[f"{split}/acc"],
                results[f"{split}/correct"],
                results[f"{split}/count"],
                results[f"{split}/loss"],
            )
    log.info("run folder: %s", folder)
