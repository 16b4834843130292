"""Time short trainings with Lightning's loop and the configured callbacks.

Times are from the end of one step to the end of another. `Stages` splits them into parts; on a GPU it synchronizes at
both ends of each part, so their sum is longer than a step without a profiler.
"""

import copy
import gc
import logging
import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ProgressBar
from lightning.pytorch.profilers import SimpleProfiler
from torch.optim.lr_scheduler import LambdaLR

from vitlab.config.schema import Node, resolve
from vitlab.data.datamodule import DataModule
from vitlab.models import flops
from vitlab.models.compile import compile_network
from vitlab.runs.muted_logs import muted_logs
from vitlab.training import build
from vitlab.training.classifier import Classifier
from vitlab.training.monitor import Monitor

Overrides = dict[str, Any]  # of a configuration: values by dotted names

PARTS = {  # of a step, in their order
    "data_wait": "waiting for data (decoding, augmenting files)",
    "transfer": "moving to the device",
    "augmentation": "augmentation and normalization of batches",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "clipping and optimizer",
    "callbacks": "monitor, metrics.csv and callbacks",
    "loop": "the rest of the loop",
}
STEP = ("forward", "backward", "optimizer")
IN_BACKWARD = ("on_before_backward", "on_after_backward")  # hooks that Lightning calls within these parts
IN_OPTIMIZER = ("on_before_optimizer_step", "on_before_zero_grad")


class Stages(SimpleProfiler):
    """Lightning's profiler, which on a GPU synchronizes at both ends of each part."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def start(self, action_name: str) -> None:
        synchronize(self.device)
        super().start(action_name)

    def stop(self, action_name: str) -> None:
        synchronize(self.device)
        super().stop(action_name)

    def describe(self) -> None:
        """Log nothing."""

    def parts(self, seconds: float) -> dict[str, float]:
        """The seconds of each part, which sum to `seconds`, the duration of the recording."""
        spent = {name: math.fsum(times) for name, times in self.recorded_durations.items()}

        def total(kind: str, *hooks: str) -> float:
            return math.fsum(t for name, t in spent.items() if name.startswith(kind) and name.endswith(hooks or ("",)))

        augmentation = total("[LightningDataModule]", ".on_after_batch_transfer")
        in_backward, in_optimizer = total("[Callback]", *IN_BACKWARD), total("[Callback]", *IN_OPTIMIZER)
        forward, backward = total("[Strategy]", ".training_step"), total("[Strategy]", ".backward") - in_backward
        batch = spent.get("run_training_batch", 0.0)
        parts = {
            "data_wait": total("[_TrainingEpochLoop].train_dataloader_next"),
            "transfer": total("[Strategy]", ".batch_to_device") - augmentation,
            "augmentation": augmentation,
            "forward": forward,
            "backward": backward,
            "optimizer": batch - forward - backward - in_backward - in_optimizer,
            "callbacks": total("[Callback]"),
        }
        parts = {name: max(0.0, value) for name, value in parts.items()}
        return {**parts, "loop": max(0.0, seconds - sum(parts.values()))}


class Timing(Callback):
    """Times optimizer steps from the end of the warm-up.

    seconds, images    of a step, with all its accumulated batches
    workers            data workers
    parts              with `Stages`: the seconds of each part, which sum to `seconds`
    """

    def __init__(self, *, warmup: int, steps: int) -> None:
        self.warmup, self.steps, self._step, self._start = warmup, steps, 0, 0.0
        self.seconds = self.images = 0.0
        self.parts: dict[str, float] = {}
        self.workers = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, profiler = trainer.global_step, trainer.profiler  # type: ignore[attr-defined]
        if step == self._step:
            return  # gradients are being accumulated
        self._step = step
        if step > self.warmup:
            self.images += batch.count / self.steps
        if step == self.warmup:
            synchronize(trainer.strategy.root_device)
            self._start = time.perf_counter()
            if isinstance(profiler, Stages):
                profiler.recorded_durations.clear()
        elif step == self.warmup + self.steps:
            synchronize(trainer.strategy.root_device)
            seconds = time.perf_counter() - self._start
            self.seconds = seconds / self.steps
            if isinstance(profiler, Stages):
                self.parts = {name: value / self.steps for name, value in profiler.parts(seconds).items()}


class ProfiledRun:
    """Data, network and loop of a configuration, for short trainings with overrides."""

    def __init__(
        self, *, datamodule: DataModule, module: Classifier, trainer: Node, callbacks: dict[str, Node | None]
    ) -> None:
        self.datamodule, self.module, self.trainer = datamodule, module, trainer
        # rate 0: steps are computed, weights don't change
        module.make_schedule = lambda optimizer, total_steps: LambdaLR(optimizer, lambda step: 0.0)
        nodes = {name: node for name, node in callbacks.items() if node}
        self.callbacks: dict[str, Node | None] = {k: v for k, v in nodes.items() if not is_skipped(v)}
        self.device = torch.device("cpu")  # set by each training
        self.flops = flops.training_flops(module.network, (datamodule.channels, *datamodule.image_size))  # of an image
        self._compiled: Classifier | None = None

    def data(self, overrides: Overrides) -> DataModule:
        """A copy of the data module that shares the loaded images."""
        data = copy.copy(self.datamodule)
        data.trainer, data.augment = None, copy.copy(data.augment)
        for name, value in overrides.items():
            if name.startswith("data.augment."):
                setattr(data.augment, name.removeprefix("data.augment."), value)
            elif name == "batch_size" or name.startswith("data."):
                setattr(data, name.removeprefix("data."), value)
        return data

    def classifier(self, overrides: Overrides) -> Classifier:
        """The module, or a compiled copy."""
        if not overrides.get("compile"):
            return self.module
        if self._compiled is None:
            self._compiled = copy.deepcopy(self.module)
            compile_network(self._compiled.network)
        return self._compiled

    def make_trainer(self, overrides: Overrides, *, folder: str, max_steps: int) -> Trainer:
        """A Trainer without progress bar, validation and checkpoints."""
        node = {**self.trainer, "max_steps": max_steps, "max_epochs": -1, "check_val_every_n_epoch": 10**9}
        node |= {"limit_val_batches": 0, "num_sanity_val_steps": 0}
        node |= {"enable_progress_bar": False, "enable_checkpointing": False}
        node |= {k.removeprefix("trainer."): v for k, v in overrides.items() if k.startswith("trainer.")}
        trainer = build.build_trainer(node, run_dir=Path(folder), logger={}, callbacks=self.callbacks)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Monitor):
                callback.meter.flops = self.flops  # or it would count them in a timed step
        return trainer

    def train(self, overrides: Overrides, *, steps: int, warmup: int, stages: bool = False) -> Timing:
        """Train for `warmup` steps and for `steps` timed ones, with `Stages` or without.

        The warm-up is longer with data workers, which load the first batches in advance.
        """
        data, module = self.data(overrides), self.classifier(overrides)
        workers = int(data.train_dataloader().num_workers)
        timing = Timing(warmup=max(warmup, 2 * workers + 1), steps=steps)
        with TemporaryDirectory(prefix="vitlab-doctor-") as folder, muted_logs("vitlab", level=logging.WARNING):
            trainer: Any = self.make_trainer(overrides, folder=folder, max_steps=timing.warmup + steps)
            self.device, timing.workers = trainer.strategy.root_device, workers
            trainer.callbacks.append(timing)
            if stages:
                trainer.profiler = Stages(self.device)
            trainer.fit(module, data)
        del trainer
        gc.collect()  # end the data workers
        return timing


def is_skipped(callback: Node) -> bool:
    """Whether a callback saves checkpoints, shows progress or stops early."""
    kind = resolve(str(callback["_target_"]))
    return isinstance(kind, type) and issubclass(kind, Checkpoint | ProgressBar | EarlyStopping)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
