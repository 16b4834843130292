"""What makes two jobs the same: what decides the result, and nothing else; and names that a command line can hold."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from conftest import Configure
from digits_identity import data
from digits_identity import identity as digits_identity
from vitlab.config.overrides import swept_keys
from vitlab.config.schema import Node
from vitlab.jobs import identity
from vitlab.jobs.compose import CONF
from vitlab.jobs.identity import incompatibilities, model_name
from vitlab.models.vit_validation import SIZES


def line(*overrides: str) -> list[str]:
    return list(overrides)


@pytest.mark.parametrize(
    "override",
    [
        *("logger=csv", "data_dir=elsewhere", "trainer.devices=4", "trainer.enable_progress_bar=false", "name=other"),
        *(
            "max_restarts=3",
            "max_failures_per_job=7",
            "sweep=mine",
            "resume=auto",
            "data.num_workers=2",
            "trainer.accelerator=cpu",
        ),
        *(
            "optimizer.lr=0.001",
            "callbacks.last.every_n_epochs=2",
            "trainer=ddp",
            "model.activation_checkpointing=true",
        ),
    ],
)
def test_what_cant_change_a_result_makes_no_other_job(configure: Configure, override: str) -> None:
    plain = configure("optimizer.lr=1e-3")
    assert identity.job_id(configure("optimizer.lr=1e-3", override), {}) == identity.job_id(plain, {})


@pytest.mark.parametrize(
    "override",
    [
        *("seed=1", "optimizer.lr=7e-3", "model.depth=1", "batch_size=32", "trainer.max_epochs=3", "data=fake"),
        *("trainer.precision=bf16-mixed", "data.val_fraction=0.2", "objective=val/acc5", "++trainer.max_steps=7"),
    ],
)
def test_what_can_change_it_makes_another(configure: Configure, override: str) -> None:
    assert identity.job_id(configure(override), {}) != identity.job_id(configure(), {})


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("trainer.devices", "1,2"),
        ("trainer", "ddp,fsdp"),
        ("logger", "csv,wandb"),
        ("model.fused_attention", "true,false"),
        ("callbacks", "default,ema"),
    ],
)
def test_what_the_sweep_varies_always_counts(configure: Configure, key: str, values: str) -> None:
    found = {identity.job_id(configure(f"{key}={value}"), {key: value}) for value in values.split(",")}
    assert len(found) == 2


def test_varying_what_counts_anyway_makes_no_other_job(configure: Configure) -> None:
    config = configure("seed=3", "optimizer.lr=1")
    assert identity.job_id(config, {"seed": "3", "optimizer.lr": "1"}) == identity.job_id(config, {})
    assert identity.job_id(configure("seed=3", "optimizer.lr=1.0"), {}) == identity.job_id(config, {}), (
        "the same number"
    )


# --------------------------------------------------------------------------------------------------------------- names


def test_a_job_is_named_by_what_varies_and_its_identity() -> None:
    assert identity.job_name({"optimizer.lr": "0.001", "model/size": "tiny"}, "0a1b") == "lr_0.001-size_tiny-0a1b"
    assert identity.job_name({"model.depth": "1", "other.depth": "2"}, "0a") == "model.depth_1-other.depth_2-0a"
    assert identity.job_name({}, "0a1b") == "0a1b"
    long = identity.job_name({f"a.key{number}": "x" * 30 for number in range(9)}, "0a1b")
    assert len(long) <= identity.LONGEST + 5
    assert long.endswith("-0a1b")


@pytest.mark.parametrize("value", ["[0.9,0.99]", "'a b'", "../x", "$(rm)", "a=b", "{a:1}", "..", ""])
def test_a_name_holds_nothing_with_a_meaning_of_its_own(value: str) -> None:
    name = identity.job_name({"optimizer.betas": value}, "0a1b")
    assert "/" not in name
    (parsed,) = OverridesParser.create().parse_overrides([f"run=runs/{name}"])
    assert parsed.value() == f"runs/{name}"


BASE = line("seed=0,1", "optimizer.lr=1e-3,3e-3", "model.depth=1")


def named(overrides: Iterable[str], sweeper: str = "grid") -> str:
    given = list(overrides)
    return identity.sweep_name("digits", given, swept_keys(given), sweeper)


@pytest.mark.parametrize(
    "overrides",
    [
        line("seed=0,1,2", "optimizer.lr=1e-3,3e-3", "model.depth=1"),
        line("model.depth=1", "optimizer.lr=5,6", "seed=7,8"),
        line(
            *BASE,
            "logger=csv",
            "trainer.devices=2",
            "hydra.sweep.dir=x",
            "hydra/launcher=basic",
            "max_failures_per_job=9",
        ),
        line("seed=0,1", "optimizer.lr=1e-3,3e-3", "++model.depth=1"),
    ],
    ids=["a value more", "another order", "what has no effect", "added"],
)
def test_the_same_sweep_has_the_same_name(overrides: list[str]) -> None:
    assert named(overrides) == named(BASE)
    assert named(BASE).startswith("digits-seed-lr-") or named(BASE).startswith("digits-lr-seed-")


@pytest.mark.parametrize(
    "overrides",
    [
        line("seed=0,1", "optimizer.lr=1e-3,3e-3", "model.depth=2"),
        line("seed=0,1", "optimizer.lr=1e-3", "model.depth=1"),
        line(*BASE, "batch_size=32,64"),
        line(*BASE, "trainer.max_epochs=3"),
    ],
    ids=["another fixed value", "a key that no longer varies", "a key that does", "a fixed key more"],
)
def test_another_sweep_has_another(overrides: list[str]) -> None:
    assert named(overrides) != named(BASE)
    assert named(BASE, "random") != named(BASE)


def test_a_sweep_is_about_its_data(configure: Configure) -> None:
    assert identity.sweep_subject(configure("data=fake"), ["seed", "data.val_fraction"]) == "fake"
    assert identity.sweep_subject(configure("data=fake"), ["seed", "data"]) == "sweep"
    assert identity.sweep_subject(configure("data=image_folder", "data_dir=a/photos")) == "photos"
    assert identity.sweep_subject(configure("data=huggingface", "data.name=ylecun/mnist"), ["seed"]) == "ylecun_mnist"
    assert identity.sweep_subject(configure("data=huggingface", "data.name=./sets/cats.parquet")) == "cats"
    assert identity.sweep_subject(configure("data=huggingface", "data.name=ylecun/mnist"), ["data.name"]) == "sweep"


# ----------------------------------------------------------------------------------------- resuming


def test_changed_settings_are_listed_with_their_effects() -> None:
    before = {"optimizer": {"lr": 0.1}, "trainer": {"devices": 1}, "logger": {"csv": 1}, "seed": 0}
    after = {"optimizer": {"lr": 0.2}, "trainer": {"devices": 2}, "logger": {"wandb": 1}, "seed": 0, "x": 5}
    assert identity.setting_changes(before, after) == [
        "optimizer.lr: 0.1 -> 0.2 (changes the training)",
        "x: (not set) -> 5 (changes the training)",
        "trainer.devices: 1 -> 2 (the same up to rounding)",
        "logger.csv: 1 -> (not set) (no effect on training)",
        "logger.wandb: (not set) -> 1 (no effect on training)",
    ]


def test_other_callbacks_make_another_run_but_not_another_progress_bar_folder_or_frequency_of_saving() -> None:
    def settled(**callbacks: object) -> Node:
        return identity.training_settings({"callbacks": callbacks})

    assert settled(last={"dirpath": "a", "every_n_minutes": 1}, progress={"leave": True}) == settled(
        last={"dirpath": "b"}, progress=None
    )
    assert settled(ema={"decay": 0.9}) != settled()


def test_the_same_network_on_the_same_data_can_be_resumed() -> None:
    one = digits_identity(data())
    assert incompatibilities(one, digits_identity(data(seed=1, batch_size=10))) == []
    for setting in ({"dropout": 0.1}, {"activation_checkpointing": True}, {"patch_projection": "linear"}):
        assert incompatibilities(one, digits_identity(data(), **setting)) == [], "no part of the trained network"


@pytest.mark.parametrize(
    ("key", "before", "now"),
    [("layer_decay", 0.7, 0.8), ("head_lr_factor", 1.0, 10.0), ("freeze", [], ["blocks"]), ("decay_all", False, True)],
)
def test_other_parameter_groups_are_refused_since_the_optimizers_state_has_the_old_ones(
    key: str, before: Any, now: Any
) -> None:
    module = data()
    one, two = (identity.run_identity({"model": {}, "classifier": {key: value}}, module) for value in (before, now))
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
    assert problem in incompatibilities(digits_identity(data()), digits_identity(data(**change)))


def test_another_network_is_refused_setting_by_setting() -> None:
    found = incompatibilities(digits_identity(data()), digits_identity(data(), dim=32, heads=4))
    assert found == ["model.dim: 16 in the checkpoint, 32 now", "model.heads: 2 in the checkpoint, 4 now"]


def test_a_run_that_began_from_other_weights_is_another_run() -> None:
    here = digits_identity(data())
    there = {**here, "config": {**here["config"], "weights": {"source": "a.pth", "strict": True}}}
    assert incompatibilities(here, {**here, "config": {**here["config"], "weights": {"source": None}}}) == []
    assert incompatibilities(there, here) == ["model.weights: a.pth in the checkpoint, None now"]


def test_a_checkpoint_records_the_preprocessing() -> None:
    preprocessing = digits_identity(data())["preprocessing"]
    assert set(preprocessing) == {"mean", "std", "interpolation", "crop_fraction"}
    assert preprocessing["interpolation"] == "bicubic"


def test_every_preset_of_a_published_size_has_its_name(configure: Configure) -> None:
    presets = sorted(file.stem for file in (CONF / "model").glob("vit_*.yaml") if file.stem != "vit_mini")
    assert len(presets) > len(SIZES)
    for preset in presets:
        assert configure(f"model={preset}")["name"] == f"digits-{preset}-224px"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"patch_size": 16, "dim": 768, "depth": 12, "heads": 12}, "vit_b16"),
        ({"patch_size": 16, "dim": 768, "depth": 12, "heads": 8}, "vit_768x12_p16"),
        ({"patch_size": [2, 4], "dim": 64, "depth": 4, "heads": 2}, "vit_64x4_p2x4"),
        ({"_target_": "mine.models.Network", "dim": 64}, "Network"),
        ({"_target_": "vitlab.models.timm_model.timm_model", "model_name": "hf_hub/x"}, "hf_hub_x"),
        (
            {"_target_": "auto", "weights": "timm:vit_tiny_patch16_224.augreg"},
            "vit_tiny_patch16_224.augreg",
        ),
        ({"_target_": "auto", "weights": "timm/some.model"}, "some.model"),
        ({"_target_": "auto", "weights": "FILE"}, "weights.v2"),
    ],
)
def test_a_model_has_the_name_of_its_size_weights_or_class(model: dict[str, Any], name: str, tmp_path: Path) -> None:
    (tmp_path / "weights.v2.safetensors").touch()
    if model.get("weights") == "FILE":
        model |= {"weights": str(tmp_path / "weights.v2.safetensors")}
    assert model_name(OmegaConf.create(model)) == name
