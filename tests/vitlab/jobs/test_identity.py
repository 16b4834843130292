"""What makes two jobs the same: what decides the result, and nothing else; and names that a command line can hold."""

from collections.abc import Iterable

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from conftest import Configure
from vitlab.config.overrides import swept_keys
from vitlab.jobs import identity


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
