"""The configuration's settings of callbacks replace those of a checkpoint."""

from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer

from vitlab.training.callback_states import keep_settings


def test_settings_are_the_configurations_and_the_rest_is_the_checkpoints() -> None:
    stopping, best = EarlyStopping("val/loss", patience=3), ModelCheckpoint(monitor="val/loss", save_top_k=2)
    trainer = Trainer(callbacks=[stopping, best, Timer(duration={"hours": 1})], logger=False, accelerator="cpu")
    states: dict[str, Any] = {
        stopping.state_key: {**stopping.state_dict(), "patience": 9, "wait_count": 2},
        best.state_key: {**best.state_dict(), "monitor": "val/acc"},
        "Timer": {"time_elapsed": {"train": 3600.0}},
    }
    keep_settings(trainer, states)
    assert states[stopping.state_key]["patience"] == 3
    assert states[stopping.state_key]["wait_count"] == 2
    assert states[best.state_key]["monitor"] == "val/acc"
    assert "Timer" not in states
