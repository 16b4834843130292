"""transformers loads what is exported; its own weights come back bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from conftest import Exportable
from model_cards import run_card
from parity import fill
from vitlab.export.export import FORMATS, largest_difference
from vitlab.export.transformers import unsupported_parts, write_transformers
from vitlab.weights.load import load_pretrained
from vitlab.weights.open import open_weights

OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "ViT"),
    ({"pos_embed": "sincos2d", "norm_eps": 1e-5}, "ViT"),
    ({"pos_embed": "none", "qkv_bias": False}, "ViT"),
    ({"pos_embed_on_patches_only": True, "activation": "gelu_tanh", "mlp_ratio": 1.5}, "ViT"),
    ({"fc_norm": True, "activation": "quick_gelu", "in_channels": 1}, "ViT"),
    ({"image_size": (16, 32), "patch_size": (4, 8)}, "ViT"),
    ({"distilled": True}, "DeiT"),
    ({"layer_scale": 0.1}, "Dinov2"),
    ({"pool": "avg", "fc_norm": False}, "Dinov2"),
    ({"activation": "swiglu", "dim": 24, "heads": 2, "mlp_ratio": 64 * 2 / 24}, "Dinov2"),
    ({"num_registers": 2}, "Dinov2WithRegisters"),
    ({"num_registers": 2, "pos_embed_on_registers": False, "layer_scale": 0.1}, "Dinov2WithRegisters"),
    ({"num_registers": 2, "pool": "avg", "fc_norm": False}, "Dinov2WithRegisters"),
]


def written(folder: Path, trained: Any) -> Path:
    folder.mkdir()
    write_transformers(trained, folder, fold=False)
    return folder


@pytest.mark.parametrize(("options", "kind"), OPTIONS, ids=str)
def test_transformers_gives_the_same_logits(
    options: dict[str, Any], kind: str, exportable: Exportable, tmp_path: Path
) -> None:
    trained = exportable(**options)
    assert unsupported_parts(trained.arguments) == []
    folder = written(tmp_path / "out", trained)
    difference = largest_difference(FORMATS["hf"], trained, folder, False)
    assert difference is not None
    assert difference < 1e-5
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    assert architecture.partition("ForImageClassification")[0] == kind


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"class_token": False, "pool": "avg", "fc_norm": False}, "model.class_token=false"),
        ({"pre_norm": True}, "model.pre_norm=true"),
        ({"pre_logits_dim": 8}, "model.pre_logits_dim=8"),
        ({"pool": "avg"}, "model.pool=avg"),
        ({"distilled": True, "num_registers": 1}, "model.num_registers=1"),
        ({"distilled": True, "layer_scale": 0.1}, "model.layer_scale=0.1"),
        ({"distilled": True, "activation": "swiglu"}, "model.activation=swiglu"),
        ({"layer_scale": 0.1, "image_size": (16, 32)}, "image_size=[16,32]"),
        ({"num_registers": 1, "mlp_ratio": 2.5}, "model.mlp_ratio=2.5"),
    ],
    ids=str,
)
def test_what_transformers_has_no_place_for_is_named(
    options: dict[str, Any], setting: str, exportable: Exportable
) -> None:
    (refused,) = unsupported_parts(exportable(**options).arguments)
    assert refused.startswith(f"{setting}: ")


@pytest.mark.parametrize("name", ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_transformers_to_ours_to_transformers_is_bit_equal(name: str, exportable: Exportable, tmp_path: Path) -> None:
    kind: Any = getattr(transformers, name)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 100}
    theirs = kind(kind.config_class(image_size=32, patch_size=8, num_labels=5, **sizes)).eval()
    fill(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    weights = open_weights(f"hf:{tmp_path / 'theirs'}")
    network, _ = load_pretrained(weights)
    trained = exportable(network=network, **weights.architecture.arguments)
    again = kind.from_pretrained(written(tmp_path / "out", trained)).eval()
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(theirs(images).logits, again(images).logits)


@pytest.mark.parametrize("crop_fraction", [None, 0.8])
def test_the_code_on_the_card_works_and_images_are_prepared_as_in_training(
    crop_fraction: float | None, exportable: Exportable, tmp_path: Path
) -> None:
    from vitlab.data.dataset import center_crop

    trained = exportable(crop_fraction=crop_fraction)
    found = run_card(trained, "hf", tmp_path / "out")
    pixels = torch.randint(0, 256, (3, 30, 30), dtype=torch.uint8)
    cropped = pixels if crop_fraction is None else center_crop(pixels, trained.image_size, crop_fraction)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    prepared = found["processor"](image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepared, trained.prepare()(cropped[None]), atol=0.03, rtol=0)
    assert found["model"].config.id2label == dict(enumerate(trained.classes))
