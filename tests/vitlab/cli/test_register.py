"""What no file of `conf` says is composed all the same: signatures' defaults, experiments, and what files compute."""

import copy
import re
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from conftest import Configure
from vitlab.cli import register
from vitlab.config import paths, signatures
from vitlab.jobs import compose
from vitlab.sweeps import ledger


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "digits-vit_64x4_p2-8px"),
        (["model=vit_ti16"], "digits-vit_ti16-224px"),
        (["model=vit_s32"], "digits-vit_s32-224px"),
        (["model=vit_b16", "data=cifar100"], "cifar100-vit_b16-224px"),
        (["model=vit_l16", "model/patch=p32"], "digits-vit_l32-224px"),
        (["model=vit_h14", "image_size=518"], "digits-vit_h14-518px"),
        (["model=vit_b16", "model/size=small", "model/resolution=px384"], "digits-vit_s16-384px"),
        (["model=vit_b16", "model.depth=11"], "digits-vit_768x11_p16-224px"),
        (["data=fashion_mnist"], "fashion_mnist-vit_64x4_p4-28px"),
        (["image_size=[8,16]", "model.patch_size=[2,4]"], "digits-vit_64x4_p2x4-8x16px"),
        (["data=image_folder", "data_dir=some/where/birds"], "birds-vit_64x4_p28-224px"),
        (["model=timm", "model.model_name=resnet18"], "digits-resnet18-224px"),
        (["model=timm", "model.model_name=hf-hub:timm/x"], "digits-hf-hub:timm_x-224px"),
        (["~model.dim", "model._target_=elsewhere.SomeNetwork"], "digits-SomeNetwork-8px"),
        (["name=mine"], "mine"),
        (["experiment=deit_b16", "model=vit_s16"], "deit_b16"),
        (["experiment=digits", "name=mine"], "mine"),
    ],
)
def test_a_run_is_named_by_what_it_is_after_all_overrides(
    configure: Configure, overrides: list[str], name: str
) -> None:
    assert configure(*overrides)["name"] == name


@pytest.mark.parametrize(
    ("data", "side"),
    [("digits", 8), ("mnist", 28), ("fashion_mnist", 28), ("cifar10", 32), ("cifar100", 32), ("image_folder", 224)],
)
def test_images_keep_their_own_size_where_the_model_asks_for_none(configure: Configure, data: str, side: int) -> None:
    config = configure(f"data={data}")
    assert config["image_size"] == config["data"]["image_size"] == config["model"]["image_size"] == side


def test_the_size_of_a_source_that_nobody_knows_is_that_of_the_paper() -> None:
    assert register.native_size("somewhere.else.my_pictures") == 224
    assert register.native_size("vitlab.data.sets.fake.fake") == 224
    assert register.native_size("vitlab.data.sets.digits.digits") == 8


@pytest.mark.parametrize(
    ("image_size", "patch"),
    [(8, 2), (16, 2), (28, 4), (32, 4), (64, 8), (224, 28), ([8, 16], 2), ([28, 32], 4), ((16, 96), 16), (2, 2)],
)
def test_a_fitting_patch_is_the_smallest_that_leaves_at_most_8_by_8(image_size: Any, patch: int) -> None:
    assert register.patch_for(image_size) == patch
    sides = [image_size] if isinstance(image_size, int) else image_size
    assert all(side % patch == 0 and side // patch <= 8 for side in sides)


@pytest.mark.parametrize("image_size", [1, [7, 9], 0, "abc", 8.0, None, ["a", "b"], []])
def test_where_no_patch_fits_none_is_made_up_and_the_checks_have_their_say(image_size: Any) -> None:
    assert register.patch_for(image_size) == 1


def test_a_job_of_a_sweep_has_a_folder_named_by_what_varies_and_what_it_is(tmp_path: Path) -> None:
    ledger.write_sweep(tmp_path, command="", varies=["optimizer.lr"], objectives={})

    def folder(*overrides: str) -> str:
        with hydra.initialize_config_dir(str(compose.CONF), version_base="1.3"):
            cfg = compose.compose("train", ["optimizer.lr=1e-3", f"hydra.sweep.dir='{tmp_path}'", *overrides])
        cfg.hydra.overrides.task = ["optimizer.lr=0.001", *overrides]
        return str(cfg.hydra.sweep.subdir)

    assert re.fullmatch(r"lr_0\.001-[0-9a-f]{12}", folder())
    assert folder("logger=csv") == folder() != folder("seed=1")


def test_a_job_of_a_sweep_tells_wandb_what_varies_and_a_single_run_nothing(tmp_path: Path) -> None:
    ledger.write_sweep(tmp_path, command="", varies=["optimizer.lr", "model/size"], objectives={})

    def wandb_settings(mode: str, *overrides: str) -> Any:
        line = ["optimizer.lr=1e-3", "model/size=mini", "seed=7", f"hydra.sweep.dir='{tmp_path}'", "sweep=mine"]
        with hydra.initialize_config_dir(str(compose.CONF), version_base="1.3"):
            cfg = compose.compose("train", [*line, f"hydra.mode={mode}", *overrides])
        cfg.hydra.overrides.task = [*line[:3], *overrides]
        HydraConfig.instance().set_config(cfg)
        try:
            config = compose.resolve_config(cfg, str(tmp_path / "run"))
        finally:
            HydraConfig.instance().cfg = None
        assert isinstance(config, dict)
        node = config["logger"]["wandb"]
        return node["name"], node["choices"], node["tags"], config["trainer"]["enable_progress_bar"]

    chosen = {"optimizer.lr": "0.001", "model/size": "mini"}
    assert wandb_settings("MULTIRUN") == ("optimizer.lr=0.001 model/size=mini", chosen, [], False)
    assert wandb_settings("RUN") == ("digits-vit_64x4_p2-8px", {}, [], True)
    mine = ["logger.wandb.name=x", "logger.wandb.tags=[y]", "trainer.enable_progress_bar=true"]
    assert wandb_settings("MULTIRUN", *mine) == ("x", chosen, ["y"], True), "a user's own go before"


@pytest.mark.parametrize(("objective", "mode"), [("val/acc", "max"), ("val/acc5", "max"), ("val/loss", "min")])
def test_the_best_checkpoint_has_the_least_loss_or_the_most_of_anything_else(
    configure: Configure, objective: str, mode: str
) -> None:
    best = configure(f"objective={objective}")["callbacks"]["best"]
    assert (best["monitor"], best["mode"]) == (objective, mode)


@pytest.mark.parametrize(("data", "objective"), [("digits", "val/loss"), ("mnist", "val/acc"), ("fake", "val/acc")])
def test_the_best_is_chosen_by_accuracy_but_where_there_are_too_few_images_for_that(
    configure: Configure, data: str, objective: str
) -> None:
    assert configure(f"data={data}")["objective"] == objective
    assert configure(f"data={data}", "objective=val/acc5")["objective"] == "val/acc5"


def test_a_probe_names_its_folder_and_none_leaves_no_trace() -> None:
    node = {"probe": {"_target_": "vitlab.evaluation.probes.KNN"}, "none": None}
    found = OmegaConf.create({**node, "a": "x${vitlab.probe:${probe}}", "b": "x${vitlab.probe:${none}}"})
    assert (found.a, found.b) == ("x-knn", "x")


@pytest.mark.parametrize(
    ("overrides", "folders", "batch_size"),
    [
        (["run=mine"], ("mine/evaluation/best-test", "mine/features"), None),
        (["run=mine", "probe=knn", "batch_size=9"], ("mine/evaluation/best-test-knn", "mine/features"), 9),
        (
            ["model=vit_mini", "data=digits", "probe=knn"],
            ("runs/evaluation/digits-vit_64x4_p2-8px/", "runs/features"),
            256,
        ),
    ],
)
def test_an_evaluation_of_a_run_is_kept_in_the_run(
    overrides: list[str], folders: tuple[str, str], batch_size: int | None
) -> None:
    with hydra.initialize_config_dir(str(compose.CONF), version_base="1.3"):
        config = compose.compose("evaluate", overrides)
    assert str(config.hydra.run.dir).startswith(folders[0])
    assert (config.features_dir, config.batch_size) == (folders[1], batch_size)


def test_every_preset_of_a_published_size_has_its_name(configure: Configure) -> None:
    folder = Path(__file__).parents[3] / "conf" / "model"
    presets = sorted(file.stem for file in folder.glob("vit_*.yaml") if file.stem != "vit_mini")
    assert len(presets) >= 8
    for preset in presets:
        assert configure(f"model={preset}")["name"] == f"digits-{preset}-224px"


def test_registering_again_does_no_harm() -> None:
    register.register_resolvers()
    register.register_resolvers()
    assert OmegaConf.create({"patch": "${vitlab.patch:32}"}).patch == 4


def test_the_length_of_a_training_follows_the_data(configure: Configure) -> None:
    for data, epochs in (("digits", 120), ("fashion_mnist", 20), ("cifar10", 100)):
        assert configure(f"data={data}")["trainer"]["max_epochs"] == epochs
    assert configure("data=fashion_mnist", "trainer.max_epochs=3")["trainer"]["max_epochs"] == 3


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "my_passwd"])
def test_a_configuration_copies_no_credential_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "s3cret")
    for text in (f"${{oc.env:{name}}}", f"${{oc.env:{name},none}}"):
        with pytest.raises(ValueError, match="would copy a credential into the run's files"):
            _ = OmegaConf.create({"a": text}).a


def test_a_configuration_reads_other_variables_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/fast")
    monkeypatch.delenv("NOWHERE", raising=False)
    config = OmegaConf.create({"a": "${oc.env:SCRATCH}", "b": "${oc.env:NOWHERE,3}", "c": "${oc.env:NOWHERE,null}"})
    assert (config.a, config.b, config.c) == ("/fast", "3", None)


def test_what_no_file_says_is_the_signature_s_default(configure: Configure) -> None:
    config = configure()
    names = ("vitlab.models.vit.VisionTransformer", "vitlab.data.augment.Augment")
    model, augment = (signatures.defaults(name) for name in names)
    assert config["model"]["layer_scale"] == model["layer_scale"]
    assert config["data"]["augment"].keys() == augment.keys()
    assert not {"num_classes", "in_channels"} & config["model"].keys(), "the data has them"


def test_every_experiment_is_an_option_for_the_whole_configuration(configure: Configure) -> None:
    store = ConfigStore.instance()
    named = {name.removesuffix(".yaml") for name in store.list("experiment")}
    assert named == {file.stem for file in paths.EXPERIMENTS.glob("*.yaml")}
    assert configure("experiment=digits")["name"].startswith("digits")


def test_hydra_s_copies_of_its_store_are_the_store() -> None:
    repo = ConfigStore.instance().repo
    assert copy.deepcopy(repo) is repo
