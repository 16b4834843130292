"""Settings and data decide whether a checkpoint can be resumed; each difference is named."""

from typing import Any

import pytest

from vitlab.config.schema import Node
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.digits import digits
from vitlab.jobs import fingerprint
from vitlab.jobs.fingerprint import incompatibilities

# ------------------------------------------------------------------------------------------------ the same run, or not


def test_changed_settings_are_told_with_what_comes_of_them() -> None:
    before = {"optimizer": {"lr": 0.1}, "trainer": {"devices": 1}, "logger": {"csv": 1}, "seed": 0}
    after = {"optimizer": {"lr": 0.2}, "trainer": {"devices": 2}, "logger": {"wandb": 1}, "seed": 0, "x": 5}
    assert fingerprint.setting_changes(before, after) == [
        "optimizer.lr: 0.1 -> 0.2 (trains otherwise)",
        "x: (not there) -> 5 (trains otherwise)",
        "trainer.devices: 1 -> 2 (the same up to rounding)",
        "logger.csv: 1 -> (not there) (no effect on training)",
        "logger.wandb: (not there) -> 1 (no effect on training)",
    ]


def test_other_callbacks_make_another_run_but_not_another_progress_bar_folder_or_frequency_of_saving() -> None:
    def settled(**callbacks: object) -> Node:
        return fingerprint.training_settings({"callbacks": callbacks})

    assert settled(last={"dirpath": "a", "every_n_minutes": 1}, progress={"leave": True}) == settled(
        last={"dirpath": "b"}, progress=None
    )
    assert settled(ema={"decay": 0.9}) != settled()


def data(**knobs: Any) -> DataModule:
    given: dict[str, Any] = {"source": digits, "batch_size": 30, "augment": Augment(), "image_size": 8, "seed": 0}
    datamodule = DataModule(**{**given, **knobs})
    datamodule.setup()
    return datamodule


def identity(datamodule: DataModule, **model: Any) -> Node:
    config = {"model": {"dim": 16, "heads": 2, "dropout": 0.0, **model}, "optimizer": {"lr": 0.1}}
    return fingerprint.run_identity(config, datamodule)


def test_the_same_network_on_the_same_data_can_go_on() -> None:
    one = identity(data())
    assert incompatibilities(one, identity(data(seed=1, batch_size=10))) == []
    assert incompatibilities(one, identity(data(), dropout=0.1)) == [], "a rate of training is no architecture"


@pytest.mark.parametrize(
    ("key", "before", "now"), [("layer_decay", 0.7, 0.8), ("head_lr_factor", 1.0, 10.0), ("freeze", [], ["blocks"])]
)
def test_other_groups_of_the_optimizer_are_told_since_its_state_would_bring_the_old_ones(
    key: str, before: Any, now: Any
) -> None:
    module = data()
    one, two = (fingerprint.run_identity({"model": {}, "classifier": {key: value}}, module) for value in (before, now))
    assert incompatibilities(one, two) == [f"classifier.{key}: {before} in the checkpoint's optimizer, {now} now"]
    assert incompatibilities(one, one) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"split_seed": 1}, "data: train images: differ, though they are as many"),
        ({"val_fraction": 0.2}, "data: val images: 144 in the checkpoint, 288 now"),
        ({"max_train_samples": 100}, "data: train images: 1293 in the checkpoint, 100 now"),
    ],
)
def test_other_data_is_told_by_what_differs(change: dict[str, Any], told: str) -> None:
    assert told in incompatibilities(identity(data()), identity(data(**change)))


def test_another_network_is_told_setting_by_setting() -> None:
    found = incompatibilities(identity(data()), identity(data(), dim=32, heads=4))
    assert found == ["model.dim: 16 in the checkpoint, 32 now", "model.heads: 2 in the checkpoint, 4 now"]


def test_a_run_that_began_from_other_weights_is_another_run() -> None:
    here = identity(data())
    there = {**here, "config": {**here["config"], "weights": {"source": "a.pth", "strict": True}}}
    assert incompatibilities(here, {**here, "config": {**here["config"], "weights": {"source": None}}}) == []
    assert incompatibilities(there, here) == ["model.weights: a.pth in the checkpoint, None now"]


def test_a_checkpoint_says_how_images_are_prepared() -> None:
    told = identity(data())["preprocessing"]
    assert set(told) == {"mean", "std", "interpolation", "crop_fraction"}
    assert told["interpolation"] == "bicubic"
