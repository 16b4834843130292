"""The rules of the network: its sizes, its weights, what of it is trained."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vitlab.cli.model_checks import train_samples
from vitlab.config.schema import ConfigView, Node
from vitlab.models.vit import VisionTransformer

Found = Callable[..., list[str]]


@pytest.mark.parametrize(
    "overrides",
    [
        ["classifier.layer_decay=0.65", "classifier.head_lr_factor=10", "classifier.freeze=[patch_embed,blocks.0]"],
        ["model=timm", "model.model_name=resnet18", "classifier.layer_decay=0.5", "classifier.freeze='layer[12]'"],
    ],
    ids=" ".join,
)
def test_a_network_that_can_be_trained_so_has_no_problem(found: Found, overrides: list[str]) -> None:
    assert found(*overrides) == []


def test_several_mistakes_in_the_sizes_of_the_model_are_told_together(found: Found) -> None:
    lines = found("image_size=100", "model.patch_size=16", "model.heads=7", "model.depth=0", "model.dropout=1.5")
    assert [line.split("=")[0] for line in lines] == ["model.depth", "model.dropout", "image_size", "model.dim"]


# ------------------------------------------------------------------------------------------------------------- weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of 24 channels for 8 px, 10 classes and 3 colours, in a file."""
    file = tmp_path_factory.mktemp("weights") / "w.pth"
    sizes: dict[str, Any] = {"image_size": 8, "patch_size": 2, "dim": 64, "depth": 1, "heads": 1, "num_classes": 10}
    torch.save(VisionTransformer(**sizes, layer_scale=0.1).state_dict(), file)
    return file


@pytest.mark.parametrize("overrides", [["model=auto"], ["model.depth=1", "model.heads=1", "weights.strict=false"]])
def test_weights_that_fit_or_need_not_are_no_problem(found: Found, weights: Path, overrides: list[str]) -> None:
    assert found(f"model.weights={weights}", *overrides) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=auto"], "model.weights=??? names no weights; set a file, a folder, timm:NAME, hf:NAME or a run"),
        (["model=auto", "model.weights=gone.pth"], "model.weights=gone.pth: there is no file or folder gone.pth"),
        (["model=auto", "model.weights=3"], "model.weights=3 names no weights"),
        (["weights.part=ema"], "weights.part=ema is of no use without model.weights=SOURCE"),
        (["weights.image_size=32"], "weights.image_size=32 is of no use without model.weights=SOURCE"),
        (["++weights.stric=false"], "weights.stric=false: there is no such setting; did you mean 'strict'"),
        (["weights.strict=0"], "weights.strict=0 is not true or false"),
        (["model=auto", "model.weights=FILE", "weights.part=ema"], "weights.part=ema: "),
        (["model=auto", "model.weights=FILE", "++model.depth=0"], "model.depth=0 must be at least 1"),
        (["model=timm", "++model.weights=FILE"], "is for vitlab's own model; use model=auto"),
        (
            ["model.weights=FILE", "model.depth=1", "model.heads=1", "model.pos_embed=learned"],
            "doesn't fit the model: in the weights, without a place in the model: blocks.0.ls1.gamma",
        ),
    ],
    ids=" ".join,
)
def test_weights_that_cant_be_loaded_are_told_before_anything_starts(
    found: Found, weights: Path, overrides: list[str], message: str
) -> None:
    (line,) = found(*(override.replace("FILE", str(weights)) for override in overrides))
    assert message in line


def test_weights_that_cant_be_read_hide_no_other_mistake(found: Found) -> None:
    lines = found("model=auto", "model.weights=gone.pth", "++sede=7", "seed=abc")
    assert [line.split("=")[0] for line in lines] == ["seed", "sede", "model.weights"]


@pytest.mark.parametrize(
    ("data", "left"),
    [
        ({}, 1293),
        ({"max_train_samples": 100}, 100),
        ({"source": {"_target_": "vitlab.data.sets.image_folder.image_folder"}}, None),
        ({"source": {"_target_": "vitlab.data.sets.fake.fake", "samples": 25}}, 22),
    ],
    ids=str,
)
def test_the_images_to_train_on_are_counted_where_the_data_s_size_is_known(data: Node, left: int | None) -> None:
    view = ConfigView(
        {"data": {"source": {"_target_": "vitlab.data.sets.digits.digits"}, "val_fraction": 0.1, **data}}, set()
    )
    assert train_samples(view) == left


def test_images_of_a_folder_are_counted_once_and_not_if_some_may_be_skipped(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1", "b/2", "b/3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").touch()
    source = {"_target_": "vitlab.data.sets.image_folder.image_folder", "data_dir": str(tmp_path)}
    data = {"source": source, "val_fraction": 0.1, "on_error": "raise"}
    view = ConfigView({"data": data}, set())
    assert train_samples(view) == 3
    shutil.rmtree(tmp_path)
    assert train_samples(view) == 3
    view = ConfigView({"data": {**data, "on_error": "skip"}}, set())
    assert train_samples(view) is None
