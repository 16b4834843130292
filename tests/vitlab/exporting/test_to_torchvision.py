"""torchvision loads what is exported, by the words of the card."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from conftest import Exportable
from vitlab.exporting import to_torchvision
from vitlab.exporting.formats import FORMATS, largest_difference


def written(folder: Path, trained: Any) -> Path:
    folder.mkdir()
    to_torchvision.write(trained, folder, fold=False)
    return folder


@pytest.mark.parametrize(
    "options",
    [{}, {"position": "sincos2d"}, {"position": "none"}, {"fc_norm": True, "norm_eps": 1e-5}, {"representation": 24}],
    ids=str,
)
def test_torchvision_gives_the_same_logits(options: dict[str, Any], exportable: Exportable, tmp_path: Path) -> None:
    trained = exportable(**options)
    assert to_torchvision.refusals(trained.arguments) == []
    folder = written(tmp_path / "out", trained)
    difference = largest_difference(FORMATS["torchvision"], trained, folder, False)
    assert difference is not None
    assert difference < 1e-5
    found: dict[str, Any] = {}
    exec(to_torchvision.usage(trained).replace("FOLDER", str(folder)), found)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(found["model"](images), trained.network(images), atol=1e-5, rtol=1e-5)


def test_published_sizes_are_called_by_their_names(exportable: Exportable) -> None:
    arguments = exportable().arguments | {"dim": 768, "depth": 12, "heads": 12, "patch_size": 16, "image_size": 32}
    name, call = to_torchvision.call(arguments)
    assert (name, call) == ("vit_b_16", {"image_size": 32, "num_classes": 7})
    with torch.device("meta"):
        assert getattr(models, name)(**call).hidden_dim == 768
    assert to_torchvision.call(arguments | {"mlp_ratio": 3.0})[0] == "VisionTransformer"


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"in_channels": 1}, "in_channels=1"),
        ({"pool": "avg"}, "pool=avg"),
        ({"pool": "avg", "class_token": False}, "class_token=false"),
        ({"registers": 4}, "registers=4"),
        ({"distilled": True}, "distilled=true"),
        ({"layer_scale": 0.1}, "layer_scale=0.1"),
        ({"activation": "gelu_tanh"}, "activation=gelu_tanh"),
        ({"pre_norm": True}, "pre_norm=true"),
        ({"qkv_bias": False}, "qkv_bias=false"),
        ({"image_size": (16, 32)}, "image_size=(16, 32)"),
        ({"patch_size": (4, 8)}, "patch_size=(4, 8)"),
    ],
    ids=str,
)
def test_what_torchvision_has_no_place_for_is_named(
    options: dict[str, Any], setting: str, exportable: Exportable
) -> None:
    refused = to_torchvision.refusals(exportable(**options).arguments)
    assert any(line.startswith(f"model.{setting}: torchvision's") for line in refused)
