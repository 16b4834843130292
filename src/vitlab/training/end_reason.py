"""Why a training ended."""

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer


def end_reason(trainer: Trainer) -> str:
    """The setting that ended a training: `max_epochs`, `max_steps`, `max_time`, `early_stopping`, or `callback`."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    if 0 < steps <= trainer.global_step:
        return "max_steps"
    if 0 < epochs <= trainer.current_epoch:
        return "max_epochs"
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, Timer) and (callback.time_remaining() or 0) <= 0 for callback in callbacks):
        return "max_time"
    if any(isinstance(callback, EarlyStopping) and callback.stopped_epoch for callback in callbacks):
        return "early_stopping"
    return "callback"
