"""The states of callbacks in a checkpoint."""

import inspect
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer


def keep_settings(trainer: Trainer, states: dict[str, Any]) -> None:
    """Let the configuration's settings of callbacks replace those in a checkpoint's states, and start a new timer.

    `trainer.max_time` counts from each start. The states of checkpoints hold paths and scores, not settings.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = states.get(callback.state_key, {})
        if isinstance(callback, Timer):
            states.pop(callback.state_key, None)
        elif not isinstance(callback, Checkpoint):
            settings = inspect.signature(type(callback).__init__).parameters
            state.update({key: getattr(callback, key) for key in state if key in settings and hasattr(callback, key)})
