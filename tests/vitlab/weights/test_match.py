"""What each tensor of a model is read from, and what of that is a problem."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import parity
from vitlab.models.vit import VisionTransformer
from vitlab.weights.infer import patch_grid
from vitlab.weights.match import StateDictMatcher, prefix_tokens
from vitlab.weights.open import open_weights

BASE: dict[str, Any] = {"image_size": 16, "patch_size": 4, "dim": 24, "depth": 1, "heads": 2, "num_classes": 5}


def fit(tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> StateDictMatcher:
    model = VisionTransformer(**BASE | theirs)
    parity.fill(model)
    save_file(model.state_dict(), tmp_path / "weights")
    weights = open_weights(str(tmp_path / "weights"), requested=BASE | theirs)
    with torch.device("meta"):
        network = VisionTransformer(**BASE | ours)
    return StateDictMatcher(network, BASE | ours, weights, "title")


def test_a_network_like_theirs_is_read_tensor_by_tensor(tmp_path: Path) -> None:
    found = fit(tmp_path, {"num_registers": 2}, {"num_registers": 2})
    assert set(found.readers) == set(found.expected) == set(found.report.matched)
    report = found.report
    assert (report.problems, report.new, report.unused, report.resampled) == ([], {}, {}, {})


@pytest.mark.parametrize(
    ("theirs", "ours", "problem"),
    [
        ({"num_registers": 2}, {}, "without a place in the model: reg_token"),
        ({}, {"num_registers": 2}, "missing in the weights: reg_token"),
        ({"distilled": True}, {}, "without a place in the model: dist_token, head_dist.weight, head_dist.bias"),
        (
            {"num_registers": 2},
            {"num_registers": 3},
            "of another shape: reg_token 1x2x24 in the weights, 1x3x24 in the model",
        ),
        ({}, {"pos_embed": "sincos2d"}, "without a place in the model: pos_embed"),
        ({"pos_embed": "none"}, {}, "missing in the weights: pos_embed"),
        ({"layer_scale": 0.1}, {}, "without a place in the model: blocks.0.ls1.gamma, blocks.0.ls2.gamma"),
        ({"dim": 12}, {}, "of another shape: cls_token 1x1x12 in the weights, 1x1x24 in the model"),
        ({"qkv_bias": False}, {}, "missing in the weights: blocks.0.attn.qkv.bias"),
        ({"activation": "swiglu"}, {}, "blocks.0.mlp.fc2.weight 24x48 in the weights, 24x96 in the model"),
    ],
    ids=str,
)
def test_what_the_arguments_dont_explain_is_a_problem(
    theirs: dict[str, Any], ours: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    assert any(problem in found for found in fit(tmp_path, theirs, ours).report.problems)


@pytest.mark.parametrize(
    ("theirs", "ours", "new", "unused"),
    [
        ({}, {"num_classes": 3}, ["head.weight", "head.bias"], ["head.weight", "head.bias"]),
        ({"num_classes": 0}, {}, ["head.weight", "head.bias"], []),
        ({}, {"num_classes": 0}, [], ["head.weight", "head.bias"]),
        (
            {"distilled": True},
            {"distilled": True, "num_classes": 3},
            ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"],
            ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"],
        ),
    ],
    ids=str,
)
def test_heads_are_explained_by_the_classes(
    theirs: dict[str, Any], ours: dict[str, Any], new: list[str], unused: list[str], tmp_path: Path
) -> None:
    report = fit(tmp_path, theirs, ours).report
    assert report.problems == []
    assert (list(report.new), list(report.unused)) == (new, unused)


def test_the_prefix_is_counted_in_its_order_and_the_grid_in_patches() -> None:
    shapes = {"reg_token": (1, 2, 8), "cls_token": (1, 1, 8)}
    assert prefix_tokens(shapes) == [("cls_token", 0), ("reg_token", 0), ("reg_token", 1)]
    assert patch_grid((32, 48), 16) == (2, 3)
