"""A fresh model has the documented scales."""

import pytest
import torch

from vitlab.models.vit import VisionTransformer


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_fresh_model_has_the_documented_scales() -> None:
    model = VisionTransformer(image_size=32, depth=2, num_registers=4, layer_scale=1e-4, num_classes=100)
    scales = {name: (float(p.mean()), float(p.std())) for name, p in model.state_dict().items()}
    for name, (mean, std) in scales.items():
        if "norm" in name and name.endswith("weight"):
            expected = (1.0, 0.0)
        elif name.endswith("gamma"):
            expected = (1e-4, 0.0)
        elif name.endswith("bias"):
            expected = (0.0, 0.0)
        elif name in ("cls_token", "reg_token"):
            expected = (0.0, 1e-6)
        elif ".attn." in name or ".mlp." in name:  # Xavier: uniform within sqrt(6 / (in + out)), q, k, v apart
            fan_in_and_out = 5 * 768 if ".mlp." in name else 2 * 768
            expected = (0.0, (2 / fan_in_and_out) ** 0.5)
        else:
            expected = (0.0, 768**-0.5 if name == "patch_embed.proj.weight" else 0.02)
        assert (mean, std) == pytest.approx(expected, rel=0.1, abs=1.5e-3 if name == "pos_embed" else 2e-4), name
