"""The progress bar."""

import time

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import ProgressColumn, Task
from rich.table import Column
from rich.text import Text


class ProgressBar(RichProgressBar):
    """Lightning's progress bar, on one line, with epochs that count from 1 and the remaining time of the run.

    Args:
        leave: Leave the bar of each epoch on the screen.
    """

    def __init__(self, *, leave: bool = False) -> None:
        super().__init__(leave=leave)
        self._drawn = 0.0  # time
        self._start = (0.0, 0)  # the time and the step at which training was started or resumed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = (time.monotonic(), trainer.global_step)
        super().on_train_start(trainer, pl_module)

    def _init_progress(self, trainer: Trainer) -> None:
        former = self.progress
        super()._init_progress(trainer)
        if self.progress is None or self.progress is former:
            return
        # without rich's thread, which draws while the log is printed: lines of the log vanished, stale bars stayed
        self.progress.stop()
        self.progress.live.auto_refresh = False
        *columns, metrics = (column for column in self.progress.columns if isinstance(column, ProgressColumn))
        for column in columns:
            column._table_column = Column(no_wrap=True)
        render = metrics.render

        def render_on_one_line(task: Task) -> Text:
            text = render(task)
            assert isinstance(text, Text)
            text.no_wrap, text.overflow = True, "ellipsis"
            return text

        metrics.render = render_on_one_line  # type: ignore[method-assign]
        self.progress.start()

    def refresh(self, hard: bool = False) -> None:
        """Draw the bar, at most ten times a second unless `hard`."""
        if hard or time.monotonic() - self._drawn > 0.1:
            self._drawn = time.monotonic()
            super().refresh(hard=True)

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = f"/{self.trainer.max_epochs}" if (self.trainer.max_epochs or -1) > 0 else ""
        return f"Epoch {current_epoch + 1}{epochs}{self._remaining_time()}".ljust(len(self.validation_description))

    def _remaining_time(self) -> str:
        """At the speed of the steps since the start, with the validations; empty before there are any."""
        since, step = self._start
        done, total = self.trainer.global_step - step, self.trainer.estimated_stepping_batches
        if not since or done <= 0 or total == float("inf"):
            return ""
        minutes = round((time.monotonic() - since) / done * (total - self.trainer.global_step) / 60)
        return f", {minutes // 60} h {minutes % 60} min left" if minutes >= 60 else f", {minutes} min left"
