"""Callbacks that save and restore checkpoints.

checkpoints/last.ckpt         the newest, which `resume` reads; saved at intervals of steps, minutes and epochs
checkpoints/previous.ckpt     the one before, in case the last is damaged
checkpoints/best.ckpt         the best by `objective` on the validation split
checkpoints/step-NNNNNN.ckpt  permanent ones, at their own intervals

Each holds model, averaged weights, optimizer, schedule, gradient scaler, position in the epoch, random states of all
ranks, best score, the sums of the open row of `metrics.csv`, and `vitlab`, the identity of its run: tensors and plain
data, which load with `weights_only=True`.
"""

import logging
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import distributed

from vitlab.config.bounds import PositiveFloat, PositiveInt, check_bounds
from vitlab.distributed import signals
from vitlab.storage.safe_load import corruption
from vitlab.training.checkpoint_files import hardlink
from vitlab.training.checkpoint_state import keep_settings, random_state, restore_random_state, set_loop_progress
from vitlab.training.classifier import logged_scores

STOPS: tuple[signals.Outcome | None, ...] = (None, "preempted", "interrupted")

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Save `last.ckpt` at each interval, at the end of training, and on a request to stop.

    Checkpoints are saved between two optimizer steps, an epoch's before its validation, so that an interrupted
    validation is repeated.

    Args:
        dirpath: The run's folder of checkpoints.
        every_n_epochs: Epochs between checkpoints, or None.
        every_n_train_steps: Optimizer steps between checkpoints.
        every_n_minutes: Minutes between checkpoints.
        keep_every_n_epochs: Epochs between permanent checkpoints, `step-NNNNNN.ckpt`.
        keep_every_n_train_steps: Optimizer steps between permanent checkpoints.
    """

    @check_bounds
    def __init__(
        self,
        *,
        dirpath: str,
        every_n_epochs: PositiveInt | None = 1,
        every_n_train_steps: PositiveInt | None = None,
        every_n_minutes: PositiveFloat | None = 10.0,
        keep_every_n_epochs: PositiveInt | None = None,
        keep_every_n_train_steps: PositiveInt | None = None,
    ) -> None:
        self.file = Path(dirpath) / "last.ckpt"
        self.epochs, self.steps, self.minutes = every_n_epochs, every_n_train_steps, every_n_minutes
        self.kept_epochs, self.kept_steps = keep_every_n_epochs, keep_every_n_train_steps
        self.seconds, self.saves = 0.0, 0  # spent on saving
        self._saved = self._seen = self._validated = -1  # optimizer steps
        self._due: tuple[bool, bool, signals.Outcome | None] = (False, False, None)  # save, keep, stop
        self._time = 0.0
        self._random: list[dict[str, Any]] = []
        self._max_steps: int | None = None  # replaced until a validation that comes after the last step
        self._due_at: int | None = None  # the step of a checkpoint that was saved before its validation

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._wait_for_validation(trainer)

    def _wait_for_validation(self, trainer: Trainer) -> None:
        """Raise `max_steps` until the last step's validation is over, or Lightning would leave it out (2.6)."""
        if self._due_at is not None and 0 < trainer.max_steps <= self._due_at:
            self._max_steps, trainer.fit_loop.epoch_loop.max_steps = trainer.max_steps, self._due_at + 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._max_steps is not None and is_fitting(trainer):
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen, self._time = trainer.global_step, time.monotonic()
        if trainer.global_rank < len(self._random):  # a new rank has no state
            restore_random_state(self._random[trainer.global_rank], trainer.strategy.root_device)
        self._random = []

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._random:  # resumed after its last step: now its last row is complete
            self.save(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == self._seen:
            return  # gradients are still being accumulated
        self._seen = step
        late = self.minutes is not None and time.monotonic() - self._time > 60 * self.minutes
        stop = signals.requested_outcome()
        if trainer.world_size > 1:  # any rank's are all ranks'
            flags = torch.tensor([int(late), STOPS.index(stop)], device=trainer.strategy.root_device)
            distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
            late, reason = flags.tolist()
            stop = STOPS[reason]
        ends, epoch = trainer.is_last_batch, trainer.current_epoch + 1
        due = late or stop is not None or is_multiple(self.steps, step) or is_multiple(self.kept_steps, step)
        kept = is_multiple(self.kept_steps, step) or (ends and is_multiple(self.kept_epochs, epoch))
        self._due = (due or kept or (ends and is_multiple(self.epochs, epoch)), kept, stop)
        if not ends or self.validation_due(trainer):
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs, steps = trainer.max_epochs or -1, trainer.max_steps
        over = 0 < epochs <= trainer.current_epoch + 1 or 0 < steps <= trainer.global_step
        if over or trainer.should_stop:  # not at the training's end, when averages have replaced the weights
            self._due = (True, *self._due[1:])
        self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        """Save, keep or stop, as decided after the last step."""
        save, keep, stop = self._due
        self._due = (False, False, None)
        if save:
            self.save(trainer)
        if keep and trainer.is_global_zero:
            hardlink(self.file, f"step-{trainer.global_step:06d}.ckpt")
        if stop:
            raise signals.StopRequested(stop)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        stop = signals.requested_outcome()
        if stop and self._saved == trainer.global_step and trainer.state.fn == TrainerFn.FITTING:
            raise signals.StopRequested(stop)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fitting(trainer):
            self._validated = trainer.global_step

    def save(self, trainer: Trainer) -> None:
        """Write `last.ckpt`; collective."""
        start = time.monotonic()
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()  # the rows that the checkpoint counts
        trainer.save_checkpoint(self.file, weights_only=False)
        self._saved, self._time = trainer.global_step, time.monotonic()
        self.seconds += self._time - start
        self.saves += 1

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the random states, and progress of the loops that can be resumed."""
        own = random_state(trainer.strategy.root_device)
        checkpoint["random"] = self._random or all_gather_object(trainer, own)  # resumed after its last step: as saved
        checkpoint["accumulate"] = trainer.accumulate_grad_batches
        if trainer.state.fn == TrainerFn.FITTING:
            due = self.validation_due(trainer)
            set_loop_progress(checkpoint, int(trainer.num_training_batches), validation_due=due)

    def validation_due(self, trainer: Trainer) -> bool:
        """Whether a validation follows the last step and hasn't run yet."""
        fetcher = trainer.fit_loop._data_fetcher
        follows = fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
        return follows and self._validated != trainer.global_step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting and len(steps := set(all_gather_object(trainer, checkpoint["global_step"]))) > 1:
            raise RuntimeError(
                f"the ranks would resume from different steps, {sorted(steps)}: their nodes see different files in the "
                "run folder; wait for the file system, or name a checkpoint with resume=FILE"
            )
        self._random = checkpoint.get("random", [])
        if fitting:
            keep_settings(trainer, checkpoint["callbacks"])
        data: Any = getattr(trainer, "datamodule", None)
        if fitting and is_validation_due(checkpoint):
            self._due_at = checkpoint["global_step"]
            if trainer.strategy.restore_checkpoint_after_setup:  # else before the schedule is built of `max_steps`
                self._wait_for_validation(trainer)
        if fitting and data is not None and checkpoint.get("accumulate", 1) != trainer.accumulate_grad_batches:
            checkpoint["accumulate"] = trainer.accumulate_grad_batches  # other batches, the same steps
            set_loop_progress(checkpoint, data.batches_per_epoch, validation_due=is_validation_due(checkpoint))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop, not fail, if another rank has already stopped in the validation and no longer responds."""
        stop = signals.requested_outcome()
        saved = self._saved == trainer.global_step and trainer.validating
        if stop and saved and not isinstance(exception, signals.StopRequested):
            raise signals.StopRequested(stop) from exception


class BestCheckpoint(ModelCheckpoint):
    """Save `best.ckpt` by `monitor`, with its validation scores; without any validation, it holds the last weights.

    Args:
        dirpath: The run's folder of checkpoints.
        monitor: Validation score by which checkpoints are compared.
        mode: `min` if lower scores are better, else `max`.
        keep: Number of best checkpoints; above 1 all are `best-STEP.ckpt`, and `best.ckpt` is a link to the best.
    """

    @check_bounds
    def __init__(self, *, dirpath: str, monitor: str, mode: str, keep: PositiveInt = 1) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best" if keep == 1 else "best-{step:06d}",
            monitor=monitor,
            mode=mode,
            save_top_k=keep,
            save_on_train_epoch_end=False,  # at each validation's end
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.file = Path(dirpath) / "best.ckpt"
        self.best_scores: dict[str, float] = {}
        self.seconds = 0.0  # spent on saving

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_fitting(trainer):
            return
        former, best = self.best_model_path, self.best_model_score
        assert self.monitor is not None
        current = trainer.callback_metrics.get(self.monitor)
        is_better = torch.lt if self.mode == "min" else torch.gt
        if current is not None and (best is None or bool(is_better(current, best))):
            self.best_scores = logged_scores(trainer, "val")
        start = time.monotonic()
        super().on_validation_end(trainer, pl_module)
        if self.save_top_k > 1 and self.best_model_path != former and trainer.is_global_zero:
            hardlink(Path(self.best_model_path), self.file.name)
        self.seconds += time.monotonic() - start

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best_scores": self.best_scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best so far if its file is intact in this run's folder; else start again."""
        assert self.dirpath is not None
        files = {Path(self.dirpath) / Path(path).name: score for path, score in state_dict["best_k_models"].items()}
        if not files:  # before the first validation
            return
        best = Path(self.dirpath) / Path(state_dict["best_model_path"]).name
        if not best.is_file() or corruption(best):
            log.warning("%s is missing or damaged: the search for the best checkpoint starts again", best)
            return
        self.best_scores, self.best_model_path = state_dict["best_scores"], str(best)
        self.best_model_score = state_dict["best_model_score"]
        self.best_k_models = {str(file): score for file, score in files.items() if file.is_file()}
        worst = (max if self.mode == "min" else min)(self.best_k_models, key=lambda k: self.best_k_models[k])
        self.kth_best_model_path, self.kth_value = worst, self.best_k_models[worst]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not in on_train_end: a run killed after its last step never reaches it
        super().on_fit_end(trainer, pl_module)
        if not self.best_model_path:
            log.warning("no validation in %d steps: best.ckpt holds the last weights", trainer.global_step)
            self.best_model_path = str(self.file)
            trainer.save_checkpoint(self.file, weights_only=False)


def is_fitting(trainer: Trainer) -> bool:
    """Whether a validation is part of training, not the sanity check before it."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def is_validation_due(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint was saved before the validation of its step."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    return bool(progress["current"]["ready"] == 1)


def is_multiple(interval: int | None, count: int) -> bool:
    return interval is not None and count % interval == 0


def all_gather_object(trainer: Trainer, value: Any) -> list[Any]:
    """The values of all ranks, in their order; collective."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(values, value)
    return values
