"""Settings and data decide whether a checkpoint can be resumed; each difference is named."""

from typing import Any

import pytest

from digits_identity import data, identity
from vitlab.config.schema import Node
from vitlab.jobs import fingerprint
from vitlab.jobs.fingerprint import incompatibilities


def test_changed_settings_are_listed_with_their_effects() -> None:
    before = {"optimizer": {"lr": 0.1}, "trainer": {"devices": 1}, "logger": {"csv": 1}, "seed": 0}
    after = {"optimizer": {"lr": 0.2}, "trainer": {"devices": 2}, "logger": {"wandb": 1}, "seed": 0, "x": 5}
    assert fingerprint.setting_changes(before, after) == [
        "optimizer.lr: 0.1 -> 0.2 (changes the training)",
        "x: (not set) -> 5 (changes the training)",
        "trainer.devices: 1 -> 2 (the same up to rounding)",
        "logger.csv: 1 -> (not set) (no effect on training)",
        "logger.wandb: (not set) -> 1 (no effect on training)",
    ]


def test_other_callbacks_make_another_run_but_not_another_progress_bar_folder_or_frequency_of_saving() -> None:
    def settled(**callbacks: object) -> Node:
        return fingerprint.training_settings({"callbacks": callbacks})

    assert settled(last={"dirpath": "a", "every_n_minutes": 1}, progress={"leave": True}) == settled(
        last={"dirpath": "b"}, progress=None
    )
    assert settled(ema={"decay": 0.9}) != settled()


def test_the_same_network_on_the_same_data_can_be_resumed() -> None:
    one = identity(data())
    assert incompatibilities(one, identity(data(seed=1, batch_size=10))) == []
    for setting in ({"dropout": 0.1}, {"activation_checkpointing": True}, {"patch_projection": "linear"}):
        assert incompatibilities(one, identity(data(), **setting)) == [], "no part of the trained network"


@pytest.mark.parametrize(
    ("key", "before", "now"),
    [("layer_decay", 0.7, 0.8), ("head_lr_factor", 1.0, 10.0), ("freeze", [], ["blocks"]), ("decay_all", False, True)],
)
def test_other_parameter_groups_are_refused_since_the_optimizers_state_has_the_old_ones(
    key: str, before: Any, now: Any
) -> None:
    module = data()
    one, two = (fingerprint.run_identity({"model": {}, "classifier": {key: value}}, module) for value in (before, now))
    assert incompatibilities(one, two) == [f"classifier.{key}: {before} in the checkpoint's optimizer, {now} now"]
    assert incompatibilities(one, one) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"split_seed": 1}, "data: train images: the number is the same, the images differ"),
        ({"val_fraction": 0.2}, "data: val images: 144 in the checkpoint, 288 now"),
        ({"max_train_samples": 100}, "data: train images: 1293 in the checkpoint, 100 now"),
    ],
)
def test_other_data_is_refused_with_what_differs(change: dict[str, Any], problem: str) -> None:
    assert problem in incompatibilities(identity(data()), identity(data(**change)))


def test_another_network_is_refused_setting_by_setting() -> None:
    found = incompatibilities(identity(data()), identity(data(), dim=32, heads=4))
    assert found == ["model.dim: 16 in the checkpoint, 32 now", "model.heads: 2 in the checkpoint, 4 now"]


def test_a_run_that_began_from_other_weights_is_another_run() -> None:
    here = identity(data())
    there = {**here, "config": {**here["config"], "weights": {"source": "a.pth", "strict": True}}}
    assert incompatibilities(here, {**here, "config": {**here["config"], "weights": {"source": None}}}) == []
    assert incompatibilities(there, here) == ["model.weights: a.pth in the checkpoint, None now"]


def test_a_checkpoint_records_the_preprocessing() -> None:
    preprocessing = identity(data())["preprocessing"]
    assert set(preprocessing) == {"mean", "std", "interpolation", "crop_fraction"}
    assert preprocessing["interpolation"] == "bicubic"
