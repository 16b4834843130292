"""Measure the training loop of `train.py` relative to a bare loop, on images in memory, some steps in turns.

vitlab       Lightning's Trainer with all default callbacks except checkpoints, `metrics.csv`, a progress bar, sampling,
             augmentation and normalization; no validation
bare loop    the same network, precision, optimizer and clipping on the batches of vitlab's steps
"""

import io
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from benchmark.case import OURS, Case, Part
from benchmark.networks import MFLOPS
from benchmark.timing import Clock, Measurement, synchronize
from vitlab.config.schema import Node
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import TrainBatch
from vitlab.jobs import compose
from vitlab.models import flops
from vitlab.training import build
from vitlab.training.classifier import Classifier

BARE = "bare loop"
MAX_ROUNDS = 5


@dataclass(kw_only=True)
class Training(Part):
    """train.py and a bare training loop, without wandb and without a warm-up of the learning rate.

    Args:
        default: Measure the default run of train.py, on digits with their augmentation.
        networks: Presets of conf/model to train on random images, each with the height of its images in pixels.
        settings: Overrides of all runs of train.py.
    """

    part = "training"

    default: bool = True
    networks: Mapping[str, int] = field(default_factory=lambda: {"vit_mini": 32, "vit_s16": 64})
    settings: tuple[str, ...] = ()

    def runs(self, device: str) -> dict[str, list[str]]:
        """The settings of the runs of `train.py`, by name."""
        accelerator = f"trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}"
        common = [accelerator, "logger=csv", "schedule.warmup_steps=0", *self.settings]
        random = [*common, "data=fake", "data.source.samples=1024"]
        return ({"the default run": common} if self.default else {}) | {
            f"{name} at {side} px": [*random, f"model={name}", f"image_size={side}"]
            for name, side in self.networks.items()
        }

    def cases(self, clock: Clock) -> Iterator[Case]:
        for name, lines in self.runs(clock.device.type).items():
            with TemporaryDirectory() as folder:
                config = train_config(lines, folder)
                measured = measure_turns(config, Path(folder), rounds=min(MAX_ROUNDS, clock.rounds))
            name += f", {config['data']['batch_size']} images a step"
            yield Case(part=self.part, name=name, measured=measured)


class Turns(Callback):
    """Turns of a fit and a bare loop, `log_every_n_steps` steps each; the first warms up. Must be the last callback."""

    def __init__(self, config: Node, module: Classifier, rounds: int) -> None:
        self.module, self.optimizer, self.rounds = module, module.build_optimizer(), rounds
        self.steps, self.clip = config["trainer"]["log_every_n_steps"], config["trainer"]["gradient_clip_val"]
        self.seconds = {OURS: list[float](), BARE: list[float]()}
        self.batches: list[TrainBatch] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.device, self.autocast = trainer.strategy.root_device, trainer.precision_plugin.forward_context
        self.module.network.to(self.device).train()
        self.begin = self.now()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TrainBatch, batch_idx: int
    ) -> None:
        self.batches.append(batch)
        if len(self.batches) == self.steps:
            self.end_turn(OURS)
            for each in self.batches:
                self.bare_step(each)
            self.end_turn(BARE)
            self.images, self.batches = sum(len(each.images) for each in self.batches) / self.steps, []
            trainer.should_stop = len(self.seconds[BARE]) > self.rounds

    def bare_step(self, batch: TrainBatch) -> None:
        network = self.module.network
        with self.autocast():
            loss = self.module.losses(network(batch.images), batch.targets).mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), self.clip)
        self.optimizer.step()

    def end_turn(self, name: str) -> None:
        self.seconds[name].append((self.now() - self.begin) / self.steps)
        self.begin = self.now()

    def now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()


def measure_turns(config: Node, folder: Path, *, rounds: int) -> list[Measurement]:
    """Fit without validation and checkpoints, until all turns have ended."""
    (data, module), turns = build_training(config), Turns(config, build_training(config)[1], rounds)
    node = config["trainer"] | {"max_epochs": 10**6, "limit_val_batches": 0, "enable_checkpointing": False}
    callbacks = {name: node for name, node in config["callbacks"].items() if name not in ("best", "last")}
    deterministic = torch.are_deterministic_algorithms_enabled()
    trainer = build.build_trainer(node, run_dir=folder, logger={}, callbacks=callbacks)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RichProgressBar):  # draw as in a terminal, without output
            callback._console_kwargs = {"file": io.StringIO(), "force_terminal": True}
    trainer.callbacks.append(turns)  # type: ignore[attr-defined]
    try:
        trainer.fit(module, data)
    finally:
        torch.use_deterministic_algorithms(deterministic)  # a Trainer may have set them for the process
    count = flops.training_flops(module.network, (data.channels, *data.image_size))
    peak = flops.peak_flops(turns.device, str(trainer.precision)) or math.nan
    measured = []
    for name, (_, *seconds) in turns.seconds.items():
        m = Measurement(name=name, seconds=tuple(seconds), items=turns.images)
        measured.append(replace(m, figures={MFLOPS: count / 1e6, "MFU %": 100 * count * m.rate / peak}))
    return measured


def train_config(lines: Sequence[str], run_dir: str = compose.UNSET_RUN_DIR) -> Node:
    """The configuration of `train.py` with these settings."""
    with compose.ensure_hydra():
        config = compose.resolve_config(compose.compose("train", [*lines]), run_dir)
    assert isinstance(config, dict), config
    return config


def build_training(config: Node) -> tuple[DataModule, Classifier]:
    data = build.build_data(config["data"])
    parts = {"optimizer": config["optimizer"], "schedule": config["schedule"]}
    return data, build.build_classifier(config["model"], data, config["classifier"], **parts)
