"""Weights fill in the open settings of a configuration; those that are set stay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

from conftest import Configure
from vitlab.config.schema import Node
from vitlab.data.datamodule import DataModule
from vitlab.models.vit import VisionTransformer
from vitlab.weights.auto_model import FALLBACK, NETWORK, as_size, fill_from_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DeiT III as timm writes it to the hub: LayerScale, no registers, its own normalization and crop."""
    place = tmp_path_factory.mktemp("deit3")
    sizes: dict[str, Any] = {"depth": 1, "img_size": 64, "num_classes": 7}
    model = timm.create_model("deit3_small_patch16_224", pretrained=False, **sizes)
    timm.models.save_for_hf(model, str(place), model_config={"model_args": sizes})
    return place


def auto(configure: Callable[..., Node], *overrides: str) -> Node:
    return configure("model=auto", *overrides)


def test_the_model_its_size_and_the_images_come_from_the_weights(configure: Configure, folder: Path) -> None:
    config = auto(configure, f"model.weights={folder}", "data=cifar10")
    model = config["model"]
    assert [model[key] for key in ("dim", "depth", "heads", "patch_size", "image_size")] == [384, 1, 6, 16, 64]
    assert model["pos_embed_on_patches_only"] is True
    assert model["layer_scale"] == 1e-5
    assert "num_classes" not in model, "the data has it"
    assert "weights" not in model, "the node describes a network alone"
    assert config["weights"] == {"strict": True, "part": None, "image_size": None, "source": str(folder)}
    assert (config["image_size"], config["data"]["image_size"]) == (64, 64)
    assert config["data"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert config["data"]["interpolation"] == "bicubic"
    assert config["data"]["augment"]["crop_fraction"] == 0.9
    assert config["name"] == f"cifar10-{folder.name}"


def test_the_configuration_takes_precedence_over_the_weights(configure: Configure, folder: Path) -> None:
    config = auto(
        configure,
        f"model.weights={folder}",
        "image_size=[32,48]",
        "++model.patch_size=8",
        "++model.drop_path=0.2",
        "data.mean=[0.5]",
        "data.augment.crop_fraction=1.0",
    )
    assert [config["model"][key] for key in ("image_size", "patch_size", "drop_path", "dim")] == [[32, 48], 8, 0.2, 384]
    assert config["data"]["image_size"] == [32, 48]
    assert config["data"]["mean"] == [0.5]
    assert config["data"]["augment"]["crop_fraction"] == 1.0


def test_a_preset_keeps_its_model_and_takes_the_images(configure: Configure, folder: Path) -> None:
    with_weights, without = configure("model=vit_s16", f"model.weights={folder}"), configure("model=vit_s16")
    assert with_weights["model"] == without["model"]
    assert with_weights["data"]["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert without["data"]["std"] is None
    assert without["weights"]["source"] is None


def test_a_run_that_is_evaluated_has_its_own_model_unless_weights_are_named(folder: Path) -> None:
    model = {"_target_": NETWORK, "image_size": "???"}
    for source in (None, "???"):
        filled = fill_from_weights({"run": "x", "model": {**model, "weights": source}, "weights": {"strict": True}})
        assert filled == {"run": "x", "model": None, "weights": {"strict": True, "source": None}}
    config: Node = {"run": None, "model": {**model, "weights": str(folder)}, "weights": {}, "data": {"augment": {}}}
    assert fill_from_weights(config)["model"]["dim"] == 384


def test_a_resumed_run_uses_its_own_record_without_weights(configure: Configure, folder: Path, tmp_path: Path) -> None:
    before = auto(configure, f"model.weights={folder}")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(before | {"weights": before["weights"] | {"source": "gone.pth"}}))
    config = auto(configure, "model.weights=gone.pth", f"resume={run}")
    assert config["model"] == before["model"]
    assert config["image_size"] == 64
    assert config["data"]["mean"] == before["data"]["mean"]


def test_unreadable_weights_leave_the_rest_to_the_checks(configure: Configure) -> None:
    config = auto(configure, "model.weights=gone.pth")
    assert config["image_size"] == config["model"]["image_size"] == FALLBACK
    assert config["weights"]["source"] == "gone.pth"
    assert fill_from_weights({"model": {"_target_": "x", "weights": None}}) == {"model": {"_target_": "x"}}
    untouched: Node = {"run": "x"}
    assert fill_from_weights(untouched) is untouched


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (32, 32),
        ([32, 48], (32, 48)),
        ((32, 48), (32, 48)),
        *((wrong, None) for wrong in ([1], [1, 2, 3], ["a", 1], [1, "a"], "x", "ab", {1: 2, 3: 4}, 1.5, None)),
    ],
)
def test_sizes_are_taken_from_yaml(value: Any, size: Any) -> None:
    assert as_size(value) == size


def test_recorded_settings_make_the_data_module(configure: Configure, folder: Path) -> None:
    from vitlab.training import build

    config = auto(configure, f"model.weights={folder}")
    datamodule = build.build_data(config["data"])
    assert isinstance(datamodule, DataModule)
    assert datamodule.preprocessing()["mean"] == pytest.approx([(0.485 + 0.456 + 0.406) / 3]), "digits are gray"
    batch = next(iter(datamodule.loader("val")))
    prepared = datamodule.on_after_batch_transfer(batch, 0).images
    assert prepared.shape[1:] == (1, 64, 64)
    assert torch.isfinite(prepared).all()


def write_run(folder: Path, **record: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(record))
    return folder


def test_another_network_keeps_its_model_and_takes_the_images(folder: Path) -> None:
    model = {"_target_": "vitlab.models.timm_model.timm_model", "model_name": "x", "image_size": None}
    filled = fill_from_weights(
        {"model": {**model, "weights": str(folder)}, "data": {"std": None, "augment": None}, "image_size": None}
    )
    assert filled["model"] == model
    assert filled["image_size"] is None
    assert filled["data"] == {"std": [0.229, 0.224, 0.225], "augment": {"crop_fraction": 0.9}}


@pytest.mark.parametrize("source", ["???", None, 5, "gone.pth"])
def test_without_readable_weights_an_open_size_alone_is_filled(source: Any) -> None:
    model: Node = {"_target_": NETWORK, "image_size": None}
    config: Node = {"image_size": None, "weights": None, "data": {"image_size": None, "mean": None}}
    filled = fill_from_weights({**config, "model": {**model, "weights": source}})
    size = {"image_size": FALLBACK}
    assert filled == {**size, "weights": {"source": source}, "model": {**model, **size}, "data": {**size, "mean": None}}
    preset = {**model, "dim": 64}
    assert fill_from_weights({**config, "model": {**preset, "weights": source}})["model"] == preset
    sized = fill_from_weights({**config, "image_size": 32, "model": {**model, "weights": source}})
    assert (sized["image_size"], sized["data"]["image_size"]) == (32, None)
    assert "image_size" not in fill_from_weights({"model": {**model, "weights": "???"}})


def test_a_run_that_is_evaluated_may_have_a_model_of_its_own_settings() -> None:
    model = {"_target_": NETWORK, "image_size": 32, "dim": 64}
    filled = fill_from_weights({"run": "x", "model": {**model, "weights": None}, "weights": {}})
    assert filled == {"run": "x", "model": model, "weights": {"source": None}}


def test_what_the_configuration_sets_to_nothing_or_for_the_data_stays(configure: Configure, folder: Path) -> None:
    settings = ["++model.layer_scale=null", "++model.num_classes=7"]
    model = auto(configure, f"model.weights={folder}", *settings)["model"]
    assert (model["layer_scale"], model["num_classes"], model["dim"]) == (None, 7, 384)
    assert "in_channels" not in model
    assert not [key for key in model if key.startswith("_") and key != "_target_"]


def test_what_the_weights_leave_open_is_the_configurations(tmp_path: Path) -> None:
    network = VisionTransformer(image_size=(16, 32), patch_size=8, dim=24, depth=1, heads=3, num_classes=3)
    torch.save(network.state_dict(), file := tmp_path / "bare.pth")
    model: Node = {"_target_": NETWORK, "image_size": None, "weights": str(file)}
    config: Node = {"image_size": None, "weights": {"image_size": [16, 32]}, "data": {"image_size": None}}
    filled = fill_from_weights({**config, "model": {**model, "heads": 3}})
    assert (filled["model"]["dim"], filled["model"]["heads"]) == (24, 3)
    assert filled["image_size"] == filled["model"]["image_size"] == filled["data"]["image_size"] == [16, 32]
    for unknown in ({}, {"heads": None}):
        assert fill_from_weights({**config, "model": {**model, **unknown}})["image_size"] == FALLBACK


@pytest.mark.parametrize(
    ("name", "record", "is_taken"),
    [
        ("run", {"weights": {"source": "gone.pth"}, "model": {"dim": 8, "image_size": 12}}, True),
        ("run", {"weights": {"source": "other.pth"}, "model": {"dim": 8, "image_size": 12}}, False),
        ("run", {"weights": {"source": "gone.pth"}, "model": None}, False),
        ("run", {"weights": None, "model": {"dim": 8, "image_size": 12}}, False),
        ("auto", {"weights": {"source": "gone.pth"}, "model": {"dim": 8, "image_size": 12}}, False),
    ],
)
def test_the_record_of_a_resumed_run_is_taken_if_it_began_from_the_same_weights(
    name: str, record: Node, is_taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / name, **record)
    model = {"_target_": NETWORK, "image_size": None, "weights": "gone.pth"}
    filled = fill_from_weights({"model": model, "resume": name, "image_size": None})
    assert filled["image_size"] == (12 if is_taken else FALLBACK)
    assert ("dim" in filled["model"]) is is_taken
    (tmp_path / name / "config.yaml").write_text("{")  # damaged: reported where the run is resumed
    assert fill_from_weights({"model": model, "resume": name, "image_size": None})["image_size"] == FALLBACK
