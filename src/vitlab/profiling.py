"""Short trainings, to see where their time goes: the real loop, with the real callbacks, for some tens of steps.

    steps to warm up | the steps that are timed | what is asked at the end (saving)

A training is timed as a whole, between the ends of two steps. Where `Stages` listens, Lightning tells it of each part;
on a GPU each part then waits for the device, so parts are true and their sum is longer than an unwatched step.
"""

import copy
import gc
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ProgressBar
from lightning.pytorch.profilers import PyTorchProfiler, SimpleProfiler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vitlab import build, flops
from vitlab.callbacks import Monitor
from vitlab.classifier import Classifier
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import FilesDataset
from vitlab.data.source import Split
from vitlab.models.compile import compile_network
from vitlab.schema import Node, resolve

# Parts of a step, in the order in which they come. Reading and varying are what the loop waits for: of workers, what
# they had not made in time. Files are varied one by one as they are read; a batch is augmented later, in the loop.
PARTS = ("reading", "varying", "moving", "augmentation", "forward", "backward", "optimizer", "callbacks", "loop")
STEP = ("forward", "backward", "optimizer")
INSIDE = ("on_before_backward", "on_after_backward")  # callbacks that Lightning asks within backward
AROUND = ("on_before_optimizer_step", "on_before_zero_grad")  # and within the rest of a step


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a training differs from the configuration; None: as that says."""

    num_workers: int | None = None
    precision: str | None = None
    batch_size: int | None = None
    log_every_n_steps: int | None = None
    compile: bool | None = None
    auto_augment: Literal["none"] | None = None
    smaller: bool = False  # files of about the size that is trained on

    def settings(self) -> list[str]:
        """As on a command line."""
        named = {
            "data.num_workers": self.num_workers,
            "trainer.precision": self.precision,
            "batch_size": self.batch_size,
            "trainer.log_every_n_steps": self.log_every_n_steps,
            "compile": "true" if self.compile else None,
            "data.augment.auto_augment": self.auto_augment,
        }
        return [f"{k}={v}" for k, v in named.items() if v is not None] + ["smaller files"] * self.smaller

    def __str__(self) -> str:
        return " ".join(self.settings()) or "as configured"

    @property
    def learns_otherwise(self) -> bool:
        """Whether it is another training, which ends in other scores, and not the same one sooner."""
        return self.batch_size is not None or self.auto_augment is not None

    def beside(self, other: "Variant") -> "Variant":
        """Both changes at once; of two values, the other's."""
        return replace(self, **{k: v for k, v in vars(other).items() if v})


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A short training: seconds of an optimizer step, its images (of all accumulated parts), loading processes."""

    seconds: float
    images: float
    workers: int
    saving: float  # seconds of one checkpoint

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


class Stages(SimpleProfiler):
    """Lightning's profiler, which on a GPU waits at both ends of each part.

    varying: the share of making an image from its file that is augmentation, as `Patient.varying` measures it.
    """

    def __init__(self, device: torch.device, *, varying: float = 0.0) -> None:
        super().__init__()
        self.on_gpu, self.varying = device.type == "cuda", varying

    def start(self, action_name: str) -> None:
        self.wait()
        super().start(action_name)

    def stop(self, action_name: str) -> None:
        self.wait()
        super().stop(action_name)

    def describe(self) -> None:
        """Nothing: what was recorded is told otherwise."""

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def parts(self, seconds: float) -> dict[str, float]:
        """The seconds of each part; all of them sum to `seconds`, the time in which they were recorded."""
        spent = {name: math.fsum(times) for name, times in self.recorded_durations.items()}

        def total(kind: str, *hooks: str) -> float:
            return math.fsum(t for name, t in spent.items() if name.startswith(kind) and name.endswith(hooks or ("",)))

        waiting = total("[_TrainingEpochLoop].train_dataloader_next")
        augmentation = total("[LightningDataModule]", ".on_after_batch_transfer")
        inside = total("[Callback]", *INSIDE)
        forward, backward = total("[Strategy]", ".training_step"), total("[Strategy]", ".backward") - inside
        whole = spent.get("run_training_batch", 0.0)
        found = {
            "reading": waiting * (1 - self.varying),
            "varying": waiting * self.varying,
            "moving": total("[Strategy]", ".batch_to_device") - augmentation,
            "augmentation": augmentation,
            "forward": forward,
            "backward": backward,
            "optimizer": whole - forward - backward - inside - total("[Callback]", *AROUND),
            "callbacks": total("[Callback]"),
        }
        found = {name: max(0.0, value) for name, value in found.items()}
        return {**found, "loop": max(0.0, seconds - sum(found.values()))}

    def rows(self) -> float:
        """Seconds that rows of the log took beyond an ordinary step's end."""
        ends = [t for name, t in self.recorded_durations.items() if name.endswith("Monitor.on_train_batch_end")]
        times = [seconds for found in ends for seconds in found]
        return max(0.0, sum(times) - len(times) * median(times)) if times else 0.0


class Stopwatch(nn.Module):
    """A step of what is done to an image, timed."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step, self.seconds = step, 0.0

    def forward(self, image: Tensor) -> Tensor:
        start = time.perf_counter()
        varied: Tensor = self.step(image)
        self.seconds += time.perf_counter() - start
        return varied


class Window(Callback):
    """Times the steps between two steps' ends, and then one checkpoint."""

    def __init__(self, *, warmup: int, steps: int, stages: Stages | None, file: Path | None) -> None:
        self.warmup, self.steps, self.stages, self.file = warmup, steps, stages, file
        self.begun = self.ended = self.saving = 0.0
        self.images, self._done = 0, 0
        self.parts: dict[str, float] = {}
        self.rows = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._done:
            return
        self._done = step
        if step > self.warmup:
            self.images += batch.count
        if step in (self.warmup, self.warmup + self.steps):
            if trainer.strategy.root_device.type == "cuda":
                torch.cuda.synchronize()
            if step == self.warmup:
                self.begun = time.perf_counter()
                if self.stages is not None:
                    self.stages.recorded_durations.clear()
            else:
                self.ended = time.perf_counter()
                if self.stages is not None:
                    self.parts, self.rows = self.stages.parts(self.ended - self.begun), self.stages.rows()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.file is not None:
            start = time.perf_counter()
            trainer.save_checkpoint(self.file, weights_only=False)
            self.saving = time.perf_counter() - start


class Pace(Callback):
    """When each batch of an evaluation was through."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.times.append(time.perf_counter())

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


class Patient:
    """What the doctor looks at: data, network and loop of a configuration, trained for a moment in variants.

    smaller     the training files, brought to about the size that is trained on; None where the data has no files
    """

    def __init__(
        self, *, datamodule: DataModule, module: Classifier, trainer: Node, callbacks: dict[str, Node | None]
    ) -> None:
        self.datamodule, self.module, self.trainer = datamodule, module, trainer
        module.make_schedule = at_rest
        # what saves, shows or ends is asked apart, or not at all
        left_out = (Checkpoint, ProgressBar, EarlyStopping)
        kept = {name: node for name, node in callbacks.items() if node}
        self.callbacks: dict[str, Node | None] = {
            name: node for name, node in kept.items() if not issubclass(class_of(node), left_out)
        }
        self.smaller: Split | None = None
        self.device = torch.device("cpu")  # on which it trains; after a training the network lies on the CPU again
        self.flops = flops.training_flops(module.network, (datamodule.channels, *datamodule.image_size))  # of an image
        self._compiled: Classifier | None = None

    def data(self, variant: Variant) -> DataModule:
        data = copy.copy(self.datamodule)
        data.trainer = None
        if variant.num_workers is not None:
            data.num_workers = variant.num_workers
        if variant.batch_size is not None:
            data.batch_size = variant.batch_size
        if variant.smaller and self.smaller is not None:
            data._splits = {**data._splits, "train": self.smaller}
        if variant.auto_augment is not None:
            data.augment = copy.copy(data.augment)
            data.augment.auto_augment = variant.auto_augment
        return data

    def made(self, variant: Variant, folder: str, **settings: Any) -> Trainer:
        """A Trainer for a moment: nothing is shown, saved or validated."""
        node = {**self.trainer, "max_epochs": -1, "limit_val_batches": 0, "num_sanity_val_steps": 0}
        node |= {"enable_progress_bar": False, "enable_checkpointing": False, **settings}
        node["precision"] = variant.precision or node["precision"]
        node["log_every_n_steps"] = variant.log_every_n_steps or node["log_every_n_steps"]
        run = build.trainer(node, run_dir=Path(folder), logger={}, callbacks=self.callbacks)
        for callback in run.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Monitor):
                callback.meter.flops = self.flops  # counted once, and not in a timed step
        return run

    def train(
        self, variant: Variant, *, steps: int, warmup: int, stages: Stages | None = None, trace: Path | None = None
    ) -> tuple[Timed, Window]:
        """Trains for `warmup` steps and then for `steps` that are timed. The warm-up is longer where workers have made
        batches in advance: what they had time for before would count as if it came for nothing.
        """
        data, module = self.data(variant), self.compiled() if variant.compile else self.module
        warmup = max(warmup, 2 * int(data.train_dataloader().num_workers) + 1)
        with TemporaryDirectory(prefix="vitlab-doctor-") as folder:
            listening: dict[str, Any] = {"profiler": stages} if stages is not None else {}
            if trace is not None:
                schedule = torch.profiler.schedule(wait=warmup, warmup=1, active=min(steps, 5))
                listening["profiler"] = PyTorchProfiler(
                    dirpath=str(trace), filename="operators", export_to_chrome=True, schedule=schedule
                )
            run = self.made(variant, folder, max_steps=warmup + steps, **listening)
            file = Path(folder) / "saved.ckpt" if stages is not None else None
            self.device = run.strategy.root_device
            window = Window(warmup=warmup, steps=steps, stages=stages, file=file)
            run.callbacks.append(window)  # type: ignore[attr-defined]
            with quietly():
                run.fit(module, data)
            workers = int(run.train_dataloader.num_workers) if run.train_dataloader is not None else 0
        del run
        gc.collect()  # ends the loading processes
        seconds = (window.ended - window.begun) / steps
        return Timed(seconds=seconds, images=window.images / steps, workers=workers, saving=window.saving), window

    def compiled(self) -> Classifier:
        """The network, compiled once; the other stays as it is."""
        if self._compiled is None:
            self._compiled = copy.deepcopy(self.module)
            compile_network(self._compiled.network)
        return self._compiled

    def reading(self, variant: Variant, *, batches: int) -> float:
        """Seconds in which the images of an optimizer step are made, by so many processes and with nothing beside them.

        The first pass starts the processes and fills caches; the second is timed from its begin, before any is made.
        """
        loader = self.data(variant).train_dataloader()
        count, start = 0, 0.0
        for limit in (max(1, int(loader.num_workers)), batches):
            iterator = iter(loader)  # workers end what they were at, and begin anew
            count, start = 0, time.perf_counter()
            for count, _ in enumerate(iterator, 1):
                if count == limit:
                    break
            taken = time.perf_counter() - start
        return taken / max(1, count)

    def varying(self, *, batches: int) -> float:
        """The share of making an image from its file that is augmentation: flips, RandAugment and their like."""
        loader = self.data(Variant(num_workers=0)).train_dataloader()
        if not isinstance(loader.dataset, FilesDataset) or not loader.dataset.steps:
            return 0.0
        watches = [Stopwatch(step) for step in loader.dataset.steps]
        loader.dataset.steps = [*watches]
        next(iter(loader))  # what is done once
        start, before = time.perf_counter(), sum(watch.seconds for watch in watches)
        for _ in itertools.islice(loader, batches):
            pass
        taken = time.perf_counter() - start
        return (sum(watch.seconds for watch in watches) - before) / taken

    def augmenting(self, variant: Variant) -> Callable[[], object]:
        """The augmentation of a part of a step's batch in the loop, on the device."""
        data = self.data(variant)
        batch = next(iter(data.train_dataloader()))
        batch = batch._replace(images=batch.images.to(self.device), targets=batch.targets.to(self.device))
        return lambda: data.on_after_batch_transfer(batch, 0)

    def images(self, variant: Variant) -> tuple[Tensor, Tensor]:
        """A part of a step's batch as the network gets it, of random numbers, and its targets."""
        data = self.data(variant)
        size = max(1, data.batch_size // int(self.trainer["accumulate_grad_batches"]))
        images = torch.rand(size, data.channels, *data.image_size)
        return images, torch.randint(data.num_classes, (size,))

    def evaluation(self, *, batches: int) -> tuple[float, int]:
        """Seconds of a batch of validation, and how many there are."""
        pace, data = Pace(), self.data(Variant())
        with TemporaryDirectory(prefix="vitlab-doctor-") as folder:
            run = self.made(Variant(), folder, limit_val_batches=batches)
            run.callbacks.append(pace)  # type: ignore[attr-defined]
            with quietly():
                run.validate(self.module, data, verbose=False)
            total = len(data.val_dataloader())
        gc.collect()
        times = [end - start for start, end in zip(pace.times, pace.times[1:], strict=False)]
        return median(times[1:] or times), total


def class_of(node: Node) -> type:
    """What a node of a callback makes."""
    found = resolve(str(node["_target_"]))
    return found if isinstance(found, type) else object


def at_rest(optimizer: Optimizer, *, total_steps: int) -> LambdaLR:
    """A rate of 0: every step is computed, and nothing moves, however often the same network is trained."""
    del total_steps
    return LambdaLR(optimizer, lambda step: 0.0)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the lines that belong to a real run."""
    loggers = {name: logging.getLogger(name) for name in ("vitlab.classifier", "vitlab.callbacks")}
    levels = {name: logger.level for name, logger in loggers.items()}
    for logger in loggers.values():
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])


def shares(parts: dict[str, float], names: Iterable[str] = PARTS) -> dict[str, float]:
    """Parts as shares of their sum."""
    whole = sum(parts.values())
    return {name: parts[name] / whole for name in names}
