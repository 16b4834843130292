"""timm loads what is exported, whatever the network is made of; its own weights come back bit for bit."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from conftest import Exportable
from model_cards import run_card
from parity import fill
from vitlab.export.export import FORMATS, largest_difference
from vitlab.export.timm import timm_config, unsupported_parts, write_timm
from vitlab.weights.load import load_pretrained
from vitlab.weights.open import open_weights

OPTIONS: list[dict[str, Any]] = [
    {},
    {"dim": 192, "depth": 12, "heads": 3, "patch_size": 16, "image_size": 32},
    {"num_registers": 2},
    {"num_registers": 2, "pos_embed_on_patches_only": True},
    {"num_registers": 2, "pos_embed_on_registers": False},
    {"pos_embed": "sincos2d"},
    {"pos_embed": "none"},
    {"pool": "avg"},
    {"pool": "avg", "fc_norm": False, "class_token": False},
    {"fc_norm": True},
    {"layer_scale": 0.1},
    {"distilled": True},
    {"distilled": True, "pos_embed": "none", "fc_norm": True},
    {"activation": "swiglu"},
    {"activation": "swiglu", "layer_scale": 0.1, "num_registers": 1},
    {"activation": "quick_gelu", "pre_norm": True, "norm_eps": 1e-5},
    {"activation": "gelu_tanh", "qkv_bias": False},
    {"in_channels": 1},
    {"in_channels": 4, "image_size": (16, 32), "patch_size": (4, 8)},
]


def written(folder: Path, trained: Any) -> Path:
    folder.mkdir()
    write_timm(trained, folder, fold=False)
    return folder


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_timm_gives_the_same_logits(options: dict[str, Any], exportable: Exportable, tmp_path: Path) -> None:
    trained = exportable(**options)
    assert unsupported_parts(trained.arguments) == []
    difference = largest_difference(FORMATS["timm"], trained, written(tmp_path / "out", trained), False)
    assert difference is not None
    assert difference < 1e-5


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"pre_logits_dim": 8}, "model.pre_logits_dim=8"),
        ({"distilled": True, "num_registers": 1}, "model.num_registers=1"),
        ({"distilled": True, "activation": "swiglu"}, "model.activation=swiglu"),
        ({"norm_eps": 1e-4}, "model.norm_eps=0.0001"),
        ({"norm_eps": 1e-5, "distilled": True}, "model.norm_eps=1e-05"),
    ],
    ids=str,
)
def test_what_timm_has_no_place_for_is_named(options: dict[str, Any], setting: str, exportable: Exportable) -> None:
    (refused,) = unsupported_parts(exportable(**options).arguments)
    assert refused.startswith(f"{setting}: timm's")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"reg_tokens": 2, "no_embed_class": True, "global_pool": "avg", "class_token": False}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("deit3_small_patch16_224", {}),
        ("vit_base_patch16_clip_quickgelu_224", {"embed_dim": 64, "num_heads": 2}),
        ("vit_giant_patch14_dinov2", {"embed_dim": 48, "num_heads": 3, "patch_size": 16}),
    ],
    ids=str,
)
def test_timm_to_ours_to_timm_is_bit_equal(
    name: str, options: dict[str, Any], exportable: Exportable, tmp_path: Path
) -> None:
    options = {"img_size": 32, "depth": 2, **options}
    theirs: Any = timm.create_model(name, num_classes=5, **options).eval()
    fill(theirs)
    timm.models.save_for_hf(theirs, str(tmp_path / "theirs"), model_config={"model_args": options})
    weights = open_weights(str(tmp_path / "theirs"))
    network, _ = load_pretrained(weights)
    arguments = {k: v for k, v in weights.architecture.arguments.items() if v is not None or k == "layer_scale"}
    trained = exportable(network=network, **arguments)
    again = timm.create_model(f"local-dir:{written(tmp_path / 'out', trained)}", pretrained=True).eval()
    before, after = theirs.state_dict(), again.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(theirs(images), again(images))


def test_the_code_on_the_card_works_and_images_are_prepared_as_in_training(
    exportable: Exportable, tmp_path: Path
) -> None:
    trained = exportable(image_size=(16, 24))
    found = run_card(trained, "timm", tmp_path / "out")
    pixels = torch.randint(0, 256, (30, 50, 3), dtype=torch.uint8)
    expected = trained.prepare()(pixels.permute(2, 0, 1)[None])
    image = found["transform"](Image.fromarray(pixels.numpy()))[None]
    torch.testing.assert_close(image, expected, atol=0.03, rtol=0)  # a step of the 256 that PIL has is 0.02
    assert found["model"].pretrained_cfg["label_names"] == list(trained.classes)
    cropped = timm_config(exportable(crop_fraction=0.9))["pretrained_cfg"]
    assert (cropped["crop_pct"], cropped["crop_mode"]) == (0.9, "center")


def test_a_model_of_timms_own_goes_back_to_it(tmp_path: Path, exportable: Exportable) -> None:
    network = timm.create_model("resnet18", num_classes=7, in_chans=3).eval()
    trained = exportable(image_size=32)
    trained = dataclasses.replace(trained, network=network, weights=trained.weights._replace(kind="timm"), arguments={})
    assert largest_difference(FORMATS["timm"], trained, written(tmp_path / "out", trained), False) == 0
