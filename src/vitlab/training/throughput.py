"""How fast a training is, and what it waits for: measured between two rows of the log, with nothing of its own
in between that would wait for the device.

    row ------------------------------- steps ------------------------------- row
         fetch  move, vary | forward, backward, step   fetch  move, vary | ...
         `---- waiting ----'                           `---- waiting ----'

A row's end waits for the device anyway, as the loss is read there: so the time from row to row is true on a GPU too.
What a GPU waits for is measured by its own clock, with an event before each fetch and one after: a fetch during which
it still had work to do costs nothing. (Lightning's ThroughputMonitor synchronises with the device after each batch.)
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from vitlab.models import flops

log = logging.getLogger(__name__)

SPEED, UTILISATION, WAIT = "train/images_per_second", "train/mfu", "train/data_wait"
TIMED = (SPEED, UTILISATION, WAIT)  # what no two runs share


class WaitTimer:
    """Seconds from each `start` to its `stop`: of the device's stream where that is a GPU's, else of this process."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._seconds, self._since = 0.0, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._open: torch.cuda.Event | None = None

    def start(self) -> None:
        if self.on_gpu:
            self._open = self._mark()
        self._since = time.perf_counter()

    def stop(self) -> None:
        if self.on_gpu and self._open is not None:
            self._events.append((self._open, self._mark()))
            self._open = None
        elif self._since:
            self._seconds += time.perf_counter() - self._since
        self._since = 0.0

    def take(self) -> float:
        """All of them since the last call. Waits for a GPU, if it has not come so far."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class ThroughputMeter:
    """`train/images_per_second`, `train/mfu` and `train/data_wait` of each row, and their medians.

    images_per_second   of all devices; validation and the saving of checkpoints are not counted
    mfu                 model FLOPs of those images, as a share of what the devices can do (`vitlab.models.flops`): the peak on
                        the datasheet, or for a CPU a matrix product that is timed when the first row is written
    data_wait           share of the time without a batch to compute on: reading, decoding, moving and, where this is
                        done in the loop, augmentation; of the rank that waits most, as the others wait for it
    """

    def __init__(self) -> None:
        self.seconds = 0.0  # of training steps, over all rows
        self.images = 0  # seen in them
        self.rows: list[dict[str, float]] = []
        self._told = 0  # so many of them
        self.flops: int | None = None  # of an image
        self._peak: float | None = None
        self._known = False  # what the two above are
        self._since, self._saving = 0.0, 0.0
        self._waiting = WaitTimer(torch.device("cpu"))
        self._release: Callable[[], None] = lambda: None

    def prepare(self, trainer: Trainer, network: nn.Module) -> None:
        """Before the strategy touches the network: one that will be sharded can't be looked at later."""
        if isinstance(trainer.strategy, ModelParallelStrategy):
            self._look(trainer, network)

    def listen(self, trainer: Trainer) -> None:
        """From now on, each fetch of a training batch is noticed when it begins."""
        loop = trainer.fit_loop.epoch_loop
        self._waiting = WaitTimer(trainer.strategy.root_device)
        original = loop._on_before_fetch

        def before_fetch() -> None:
            original()
            self._waiting.start()

        loop._on_before_fetch = before_fetch  # type: ignore[method-assign]
        self._release = lambda: setattr(loop, "_on_before_fetch", original)

    def release(self) -> None:
        """Undoes `listen`."""
        self._release()
        self._release = lambda: None

    def arrived(self) -> None:
        """A batch is on the device and ready: the waiting for it is over."""
        self._waiting.stop()

    def begin(self, trainer: Trainer) -> None:
        """What was done since the last row, such as a validation, was no training."""
        self._waiting.take()
        self._saving, self._since = checkpoint_seconds(trainer), time.perf_counter()

    def close(self, trainer: Trainer, module: LightningModule, images: int) -> dict[str, float]:
        """The row's numbers. Every rank calls it, after the device has come so far; `images`: of all ranks."""
        now, saved = time.perf_counter(), checkpoint_seconds(trainer)
        seconds, waited = now - self._since - (saved - self._saving), self._waiting.take()
        row: dict[str, float] = {}
        if images and seconds > 0:
            self.seconds += seconds
            self.images += images
            if not self._known:
                network = module.network
                assert isinstance(network, nn.Module)
                self._look(trainer, network)
                now = time.perf_counter()  # looking was no training
            row[SPEED] = images / seconds
            if self.flops and self._peak:
                row[UTILISATION] = row[SPEED] * self.flops / (self._peak * trainer.world_size)
            share = torch.tensor(min(1.0, waited / seconds), device=trainer.strategy.root_device)
            row[WAIT] = float(trainer.strategy.reduce(share, reduce_op="max"))
            self.rows.append(row)
        self._since, self._saving = now, saved
        return row

    def medians(self) -> dict[str, float]:
        """Of this process's rows but for the first, in which everything is done for the first time; names without
        `train/`.
        """
        return {name.removeprefix("train/"): value for name, value in row_medians(self.rows[1:] or self.rows).items()}

    def told(self) -> list[str]:
        """Speed, MFU and data wait: medians of the rows since the last call, or of the last row where there is none."""
        found = row_medians(self.rows[max(self._told, 1) :] or self.rows[-1:])  # not the run's first, as in `medians`
        self._told = len(self.rows)
        shares = [(name, found[key]) for name, key in (("MFU", UTILISATION), ("data wait", WAIT)) if key in found]
        return [f"{found[SPEED]:,.0f} images/s", *(f"{name} {share:.0%}" for name, share in shares)] if found else []

    def _look(self, trainer: Trainer, network: nn.Module) -> None:
        """What an image takes, and what the device could do."""
        self._known = True
        data = getattr(trainer, "datamodule", None)
        try:
            if self.flops is None:
                self.flops = flops.training_flops(network, (data.channels, *data.image_size))  # type: ignore[union-attr]
        except Exception as error:  # a network of any kind: whatever it can't do without values
            log.info("no train/mfu: FLOPs can't be counted (%s: %s)", type(error).__name__, error)
            return
        self._peak = flops.peak_flops(trainer.strategy.root_device, str(trainer.precision))


def row_medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each timed quantity."""
    names = [name for name in TIMED if any(name in row for row in rows)]
    return {name: median(row[name] for row in rows if name in row) for name in names}


def checkpoint_seconds(trainer: Trainer) -> float:
    """Seconds spent on saving checkpoints so far."""
    return sum(float(getattr(callback, "seconds", 0.0)) for callback in trainer.checkpoint_callbacks)
