"""The log of a training: rows of numbers, and a line of text per epoch. Epochs count from 1."""

import logging
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import Metric

from vitlab.data.dataset import TrainBatch
from vitlab.runs import wandb
from vitlab.runs.metrics_file import MetricsFile
from vitlab.training.checkpoints import all_gather_object, is_fitting
from vitlab.training.classifier import Classifier, logged_scores
from vitlab.training.optimizer import logged_rates
from vitlab.training.throughput import ThroughputMeter

log = logging.getLogger(__name__)


class Monitor(Callback):
    """Log a row every `trainer.log_every_n_steps` steps and at an epoch's end, and a line of text each epoch.

    A row has the epoch, the mean loss over the images since the last row (of all ranks), the learning rates
    (`vitlab.training.optimizer.logged_rates`), gradient norm before clipping, images seen, speed, MFU and data wait
    (`vitlab.training.throughput`). Nothing here waits for the device between rows. No row spans two epochs. A
    checkpoint holds the open row's sums of each rank, so a resumed run writes the rows of an uninterrupted one.
    """

    def __init__(self) -> None:
        self.images = 0  # seen by the optimizer, over all ranks
        self.meter = ThroughputMeter()
        self._window_images, self._untimed = 0, 0  # since the last row; before a resume
        self._last_loss, self._done = float("nan"), 0
        self._rates: dict[str, float] = {}
        self._step, self._rows = 0, 0  # of metrics.csv, in the checkpoint

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(pl_module, Classifier)
        rows = [logger.count for logger in trainer.loggers if isinstance(logger, MetricsFile)]
        state = pl_module.train_loss.metric_state
        losses = {name: value.cpu() for name, value in state.items() if isinstance(value, Tensor)}
        checkpoint["monitor"] = {
            "images": self.images,
            "window_images": self._window_images,
            "last_loss": self._last_loss,
            "rates": self._rates,
            "gradient_norm": None if pl_module.gradient_norm is None else pl_module.gradient_norm.cpu(),
            "losses": all_gather_object(trainer, losses),
            "rows": rows[0] if rows else 0,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(pl_module, Classifier)
        if trainer.state.fn != TrainerFn.FITTING:
            return  # the best checkpoint, for the test
        state = checkpoint["monitor"]
        self.images, self._window_images = state["images"], state["window_images"]
        self._untimed = self._window_images
        self._step, self._rows = checkpoint["global_step"], state["rows"]
        self._last_loss, losses = state["last_loss"], state["losses"]
        self._rates, pl_module.gradient_norm = state["rates"], state["gradient_norm"]
        if len(losses) == trainer.world_size:
            restore_metric(pl_module.train_loss, losses[trainer.global_rank])
        elif trainer.global_rank == 0:  # on another number of ranks, one takes all
            restore_metric(pl_module.train_loss, {k: sum(part[k] for part in losses) for k in losses[0]})
        if trainer.strategy.restore_checkpoint_after_setup:  # FSDP2: after on_fit_start
            self._rewind(trainer)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.monitored = True
        if stage == TrainerFn.FITTING:
            self.meter.prepare(trainer, pl_module.network)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not in on_train_start: a run killed after its last step never reaches it
        if not trainer.strategy.restore_checkpoint_after_setup:
            self._rewind(trainer)

    def _rewind(self, trainer: Trainer) -> None:
        """Drop the rows that a checkpoint, or a start without one, doesn't count."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.rewind(self._step, self._rows)
                wandb.resend_rows(logger.read_rows(), trainer.loggers)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.strategy.restore_checkpoint_after_setup and self._step == 0:
            self._rewind(trainer)
        self._done = trainer.global_step
        self.meter.attach(trainer)
        self.meter.open_row(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.meter.waiting.stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fitting(trainer) and self._window_images:
            self._log_training(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fitting(trainer):
            row = {**logged_scores(trainer, "val"), "epoch": trainer.current_epoch + 1, "images": self.images}
            self._log_row(trainer, row)
            self._log_epoch(trainer)
            self.meter.open_row(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self._log_row(trainer, logged_scores(trainer, pl_module.split))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._rates = {f"lr/{name}": rate for name, rate in logged_rates(optimizer).items()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TrainBatch, batch_idx: int
    ) -> None:
        if trainer.global_step == self._done:
            return  # gradients are still being accumulated
        self._done = trainer.global_step
        self.images += batch.count
        self._window_images += batch.count
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log_training(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._window_images:
            self._log_training(trainer, pl_module)
        if not sum(trainer.num_val_batches):  # else after the validation
            self._log_epoch(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._window_images:  # of a run that was killed after its last step, within an epoch
            self._log_training(trainer, pl_module)

    def _log_training(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, Classifier)
        loss = module.train_loss.compute()  # every rank: this sums over them
        module.train_loss.reset()
        row = {"train/loss": float(loss), "epoch": trainer.current_epoch + 1, "images": self.images}
        self._last_loss = row["train/loss"]
        if module.gradient_norm is not None:
            row["train/gradient_norm"] = float(module.gradient_norm)
        row |= self._rates
        row |= self.meter.close_row(trainer, module, self._window_images - self._untimed)
        self._window_images, self._untimed = 0, 0
        trainer.progress_bar_metrics.update({"train/loss": row["train/loss"]})
        self._log_row(trainer, row)

    def _log_row(self, trainer: Trainer, row: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)

    def _log_epoch(self, trainer: Trainer) -> None:
        epochs = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        scores = {k: float(v) for k, v in trainer.callback_metrics.items() if k in ("val/loss", "val/acc")}
        parts = [f"epoch {trainer.current_epoch + 1}{epochs}", f"step {trainer.global_step}"]
        parts += [f"train/loss {self._last_loss:.4f}", *(f"{k} {v:.4f}" for k, v in sorted(scores.items()))]
        parts += self.meter.summary()
        log.info("   ".join(parts))


def restore_metric(metric: Metric, state: dict[str, Any]) -> None:
    """Set a metric's sums to those of a checkpoint."""
    for name, value in state.items():
        getattr(metric, name).copy_(value)
    metric._update_count = 1  # prevents a warning about missing updates
