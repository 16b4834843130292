"""The tables of layouts: each is complete, its names map back to themselves, and it is recognized as itself."""

import inspect
from typing import Any

import pytest
import torch
import torchvision
import transformers
from torch import Tensor, nn

from vitlab.models.vit import VisionTransformer
from vitlab.weights.layouts import LAYOUTS
from vitlab.weights.mapping import from_ours, layout_name, plan_mapping, recognize_networks
from vitlab.weights.rules import BLOCK, Rule

# arguments of a network that has a place in each layout
SETTINGS: dict[str, dict[str, Any]] = {
    "dinov2": {"layer_scale": 0.1, "num_registers": 2, "pos_embed_on_registers": False, "activation": "swiglu"},
    "timm": {"layer_scale": 0.1, "num_registers": 2, "distilled": True},
    "hf_deit_with_teacher": {"distilled": True},
    "hf_deit": {"num_registers": 1},
    "hf_dinov2": {"layer_scale": 0.1, "num_registers": 2, "pos_embed_on_registers": False, "activation": "swiglu"},
    "hf_vit": {},
    "hf_clip": {"pre_norm": True},
    "open_clip": {"pre_norm": True},
    "torchvision": {"pre_logits_dim": 6},
    "google": {"pre_logits_dim": 6},
}


def network(name: str) -> dict[str, Tensor]:
    """Random weights of our model, as far as a layout has a place for them."""
    toy = {"image_size": 8, "patch_size": 4, "dim": 12, "depth": 2, "heads": 3, "num_classes": 5}
    state = VisionTransformer(**toy | SETTINGS[name]).state_dict()
    if name.endswith("clip"):  # these project to a common space, without a bias
        del state["head.bias"]
    return {key: torch.rand(value.shape) for key, value in state.items()}


def test_every_layout_is_tried() -> None:
    assert set(SETTINGS) == set(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_network_written_in_a_layout_is_recognized_and_comes_back_bit_for_bit(name: str) -> None:
    ours, layout = network(name), LAYOUTS[name]
    theirs = from_ours(ours, layout, heads=3, inner=layout.inner[0] if layout.inner else "")
    (found,) = recognize_networks(theirs)
    assert found.layout is layout
    assert found.others == []
    assert plan_mapping(found).unknown == []
    assert list(plan_mapping(found).skipped) == [f"{found.prefix}{zero}" for zero in layout.zeros or {}]
    back = {
        key: form.to([theirs[each] for each in names]) for key, (form, names) in plan_mapping(found).sources.items()
    }
    assert back.keys() == ours.keys()
    for key, value in ours.items():
        assert torch.equal(back[key], value), key


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_that_a_layout_writes_are_not_respelled(name: str) -> None:
    layout = LAYOUTS[name]
    names = [theirs.replace(BLOCK, "7") for rule in layout.rules for theirs in rule.theirs]
    assert [layout_name(each, layout) for each in names if layout_name(each, layout) != each and "/" not in each] == []


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_has_its_anchor_and_one_rule_for_each_of_our_tensors_that_suits(name: str) -> None:
    layout = LAYOUTS[name]
    assert any(layout.anchor in rule.theirs for rule in layout.rules)

    def written(gated: bool) -> list[str]:
        first: dict[str, Rule] = {}
        for rule in layout.rules:
            if rule.gated in (None, gated):
                first.setdefault(rule.ours, rule)
        return [theirs for rule in first.values() for theirs in rule.theirs]

    for gated in (True, False):
        assert len(set(written(gated))) == len(written(gated)), "two tensors of ours under one name"


BIG_VISION = {
    "Transformer/posembed_input/pos_embedding": "pos_embedding",
    "/MultiHeadDotProductAttention_1/": "/MultiHeadDotProductAttention_0/",
    "/MlpBlock_3/": "/MlpBlock_0/",
    "/LayerNorm_2/": "/LayerNorm_1/",
}


def test_the_names_of_googles_newer_code_are_read_too() -> None:
    ours = network("google")
    theirs = from_ours(ours, LAYOUTS["google"], heads=3)
    for original, newer in BIG_VISION.items():
        theirs = {key.replace(original, newer): value for key, value in theirs.items()}
    (found,) = recognize_networks([f"params/{key}" for key in theirs])
    assert found.prefix == "params/"
    assert plan_mapping(found).sources.keys() == ours.keys()
    assert plan_mapping(found).unknown == []


def test_a_layouts_norms_have_the_epsilon_of_its_library() -> None:
    libraries = {
        "hf_deit_with_teacher": transformers.DeiTConfig().layer_norm_eps,
        "hf_deit": transformers.DeiTConfig().layer_norm_eps,
        "hf_dinov2": transformers.Dinov2Config().layer_norm_eps,
        "hf_vit": transformers.ViTConfig().layer_norm_eps,
        "hf_clip": transformers.CLIPVisionConfig().layer_norm_eps,
        "open_clip": nn.LayerNorm(1).eps,
        "torchvision": inspect.signature(torchvision.models.VisionTransformer).parameters["norm_layer"].default(1).eps,
        "google": 1e-6,  # flax
    }
    settings = {name: dict(layout.settings or {}) for name, layout in LAYOUTS.items()}
    own = {name: each["norm_eps"] for name, each in settings.items() if "norm_eps" in each}
    assert own == libraries
