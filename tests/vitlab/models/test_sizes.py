"""Published sizes have the names that the literature gives them."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from conftest import Configure
from vitlab.jobs.compose import CONF
from vitlab.models.sizes import SIZES, model_name


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
