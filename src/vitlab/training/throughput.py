"""Speed and data wait of a training from row to row of the log, without waiting for the device in between.

    row ------------------------------- steps ------------------------------- row
         fetch  move, vary | forward, backward, step   fetch  move, vary | ...
         `---- waiting ----'                           `---- waiting ----'

A row ends with reading the loss, which waits for the device anyway, so the time from row to row is exact on a GPU too.
Its data wait is measured by CUDA events before and after each fetch: a fetch during which it computes costs nothing.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from vitlab.models import flops
from vitlab.training.checkpoint_state import random_state, restore_random_state

log = logging.getLogger(__name__)

SPEED, UTILIZATION, WAIT = "train/images_per_second", "train/mfu", "train/data_wait"
TIMED = (SPEED, UTILIZATION, WAIT)  # differ from run to run


class WaitTimer:
    """Seconds from each `start` to its `stop`, of a GPU's stream or of this process."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._open: Any = None  # a CUDA event, or seconds
        self._waits: list[tuple[Any, Any]] = []

    def start(self) -> None:
        self._open = self._mark()

    def stop(self) -> None:
        if self._open is not None:
            self._waits.append((self._open, self._mark()))
            self._open = None

    def take(self) -> float:
        """The sum since the last call. Waits for the GPU's last event."""
        waits, self._waits = self._waits, []
        if not self._on_gpu:
            return float(sum(end - begin for begin, end in waits))
        for _, end in waits[-1:]:
            end.synchronize()
        return float(sum(begin.elapsed_time(end) for begin, end in waits)) / 1000

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class ThroughputMeter:
    """`train/images_per_second`, `train/mfu` and `train/data_wait` of each row, and their medians.

    images_per_second   of all devices, without validation and checkpoints
    mfu                 model FLOPs of those images, as a share of the devices' peak (`vitlab.models.flops`)
    data_wait           share of the time without a batch to compute on (reading, decoding, moving, augmentation), of
                        the slowest rank, for which the others wait
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.flops: int | None = None  # of an image, in the last row
        self._counted: dict[tuple[int, int], int] = {}  # of an image, by its size
        self.waiting = WaitTimer(torch.device("cpu"))  # Monitor stops it when a batch is ready on the device
        self._summarized = 0  # rows
        self._peak: float | None = None
        self._measured = False  # `flops` and `_peak`
        self._since, self._saving = 0.0, 0.0

    def prepare(self, trainer: Trainer, network: nn.Module) -> None:
        """Count the FLOPs of a network before it is sharded; afterwards that is impossible."""
        if isinstance(trainer.strategy, ModelParallelStrategy):
            self._measure(trainer, network)

    def attach(self, trainer: Trainer) -> None:
        """Start the timer at each fetch of a training batch."""
        loop = trainer.fit_loop.epoch_loop
        self.waiting = WaitTimer(trainer.strategy.root_device)
        original = loop._on_before_fetch

        def before_fetch() -> None:
            original()
            self.waiting.start()

        loop._on_before_fetch = before_fetch  # type: ignore[method-assign]

    def open_row(self, trainer: Trainer) -> None:
        """Start a row's time after a validation."""
        self.waiting.take()
        self._saving, self._since = checkpoint_seconds(trainer), time.perf_counter()

    def close_row(self, trainer: Trainer, module: LightningModule, images: int) -> dict[str, float]:
        """The row's numbers; collective, after waiting for the device. `images`: of all ranks."""
        now, saved = time.perf_counter(), checkpoint_seconds(trainer)
        seconds, waited = now - self._since - (saved - self._saving), self.waiting.take()
        row: dict[str, float] = {}
        if images and seconds > 0:
            if not self._measured:
                self._measure(trainer, cast(nn.Module, module.network))
                now = time.perf_counter()
            row[SPEED] = images / seconds
            if self._peak:
                self.flops = self._counted[trainer.datamodule.train_size(trainer.current_epoch)]  # type: ignore[attr-defined]
                row[UTILIZATION] = row[SPEED] * self.flops / (self._peak * trainer.world_size)
            share = torch.tensor(min(1.0, waited / seconds), device=trainer.strategy.root_device)
            row[WAIT] = float(trainer.strategy.reduce(share, reduce_op="max"))
            self.rows.append(row)
        self._since, self._saving = now, saved
        return row

    def medians(self) -> dict[str, float]:
        """Medians of the rows after the first, which includes the warm-up; names without `train/`."""
        return {name.removeprefix("train/"): value for name, value in row_medians(self.rows[1:] or self.rows).items()}

    def summary(self) -> list[str]:
        """Speed, MFU and data wait: medians of the rows since the last call, or the last row."""
        row = row_medians(self.rows[max(self._summarized, 1) :] or self.rows[-1:])  # not the first, as in `medians`
        self._summarized = len(self.rows)
        shares = [(name, row[key]) for name, key in (("MFU", UTILIZATION), ("data wait", WAIT)) if key in row]
        return [f"{row[SPEED]:,.0f} images/s", *(f"{name} {share:.0%}" for name, share in shares)] if row else []

    def _measure(self, trainer: Trainer, network: nn.Module) -> None:
        """Set the FLOPs of an image and the peak of the device."""
        self._measured = True
        data, device = getattr(trainer, "datamodule", None), trainer.strategy.root_device
        state = random_state(device)  # a resumed run measures at another step: training must not notice
        try:
            for size in data.train_sizes:  # type: ignore[union-attr]
                self._counted[size] = flops.training_flops(network, (data.channels, *size))  # type: ignore[union-attr]
        except Exception as error:  # a network may need values to run
            log.info("no train/mfu: FLOPs can't be counted (%s: %s)", type(error).__name__, error)
        else:
            self._peak = flops.peak_flops(device, str(trainer.precision))
        finally:
            restore_random_state(state, device)


def row_medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each timed quantity."""
    names = [name for name in TIMED if any(name in row for row in rows)]
    return {name: median(row[name] for row in rows if name in row) for name in names}


def checkpoint_seconds(trainer: Trainer) -> float:
    """Seconds spent on saving checkpoints so far."""
    return sum(float(getattr(callback, "seconds", 0.0)) for callback in trainer.checkpoint_callbacks)
