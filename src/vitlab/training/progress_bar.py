"""The progress of a run: a bar in a terminal, lines in a pipe or a file."""

import logging
import time
from datetime import timedelta
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich import get_console
from rich.progress import ProgressColumn
from rich.table import Column

LINES = 30.0  # seconds between two lines

log = logging.getLogger(__name__)


class ProgressBar(RichProgressBar):
    """Lightning's progress bar, on one line, with epochs that count from 1 and the remaining time of the run.

    Where the output is no terminal, a line every 30 seconds.

    Args:
        leave: Leave the bar of each epoch on the screen.
    """

    def __init__(self, *, leave: bool = False) -> None:
        super().__init__(leave=leave)
        self._drawn = 0.0  # time
        self._start: tuple[float, int] | None = None  # time and step at which training was started or resumed
        self._writes_lines, self._last_line = False, 0.0  # time

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._stage_start = time.monotonic()
        if self.is_enabled and not get_console().is_terminal:
            self.disable()
            self._writes_lines, self._last_line = True, time.monotonic()  # of the first rank: others are disabled

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = (time.monotonic(), trainer.global_step)
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._write_line(self._epoch(trainer.current_epoch), batch_idx, trainer.num_training_batches)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *more: int
    ) -> None:
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, *more)
        self._write_line("validation", batch_idx, sum(trainer.num_val_batches))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *more: int
    ) -> None:
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, *more)
        self._write_line(getattr(pl_module, "progress", "test"), batch_idx, sum(trainer.num_test_batches))

    def _write_line(self, what: str, batch: int, batches: int | float) -> None:
        """Log the progress, if lines are written and it is time for one."""
        if not self._writes_lines or time.monotonic() - self._last_line < LINES:
            return
        self._last_line = time.monotonic()
        parts = [what, f"batch {batch + 1:,} of {batches:,}"]
        if self.trainer.state.fn == TrainerFn.FITTING:
            loss = self.trainer.progress_bar_metrics.get("train/loss")
            parts += ["" if loss is None else f"train/loss {loss:.4f}", self._remaining_time()]
        elif batches < float("inf"):
            seconds = round((time.monotonic() - self._stage_start) / (batch + 1) * (batches - batch - 1))
            parts.append(f"{timedelta(seconds=seconds)} left")
        log.info("   ".join(filter(None, parts)))

    def _init_progress(self, trainer: Trainer) -> None:
        former = self.progress
        super()._init_progress(trainer)
        if self.progress is None or self.progress is former:
            return
        # without rich's thread, which draws while the log is printed: lines of the log vanished, stale bars stayed
        self.progress.live.transient = not self._leave  # nor a bar at the end
        self.progress.stop()
        self.progress.live.auto_refresh = False
        for column in self.progress.columns:
            if isinstance(column, ProgressColumn):
                column._table_column = Column(no_wrap=True)
        self.progress.start()

    def refresh(self, hard: bool = False) -> None:
        """Draw the bar, at most ten times a second unless `hard`."""
        if hard or time.monotonic() - self._drawn > 0.1:
            self._drawn = time.monotonic()
            super().refresh(hard=True)

    def _epoch(self, epoch: int) -> str:
        return f"epoch {epoch + 1}" + ("" if self.trainer.max_epochs in (None, -1) else f"/{self.trainer.max_epochs}")

    def _get_train_description(self, current_epoch: int) -> str:
        parts = filter(None, [self._epoch(current_epoch).capitalize(), self._remaining_time()])
        return ", ".join(parts).ljust(len(self.validation_description))

    def _remaining_time(self) -> str:
        """At the speed of the steps since the start, with the validations; empty before there are any."""
        since, step = self._start or (0.0, self.trainer.global_step)
        done, total = self.trainer.global_step - step, self.trainer.estimated_stepping_batches
        if done <= 0 or total == float("inf"):
            return ""
        seconds = round((time.monotonic() - since) / done * (total - self.trainer.global_step))
        return f"{timedelta(seconds=seconds)} left"
