"""What ended a training: each way that Lightning knows."""

from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.demos.boring_classes import BoringModel

from vitlab.training.end_reason import end_reason


class Stop(Callback):
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= 2


class Model(BoringModel):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", torch.tensor(1.0))


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("max_epochs", {"max_epochs": 2}),
        ("max_steps", {"max_epochs": -1, "max_steps": 3}),
        ("max_time", {"max_epochs": -1, "max_time": {"seconds": 0}}),
        ("early_stopping", {"max_epochs": 9, "callbacks": [EarlyStopping("loss", patience=1)]}),
        ("callback", {"max_epochs": 9, "callbacks": [Stop()], "min_steps": 1}),
    ],
)
def test_the_reason_is_the_setting_that_ended_it(reason: str, options: dict[str, Any]) -> None:
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(
        accelerator="cpu",
        limit_train_batches=4,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        **quiet,
        **options,
    )
    trainer.fit(Model())
    assert end_reason(trainer) == reason
