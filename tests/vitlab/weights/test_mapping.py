"""Networks are recognized with any prefix; tensors without a place are named."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vitlab.models.vit import VisionTransformer
from vitlab.weights.layouts import LAYOUTS
from vitlab.weights.mapping import StoredNetwork, from_ours, is_gated, plan_mapping, recognize_networks


@pytest.fixture(scope="module")
def ours() -> dict[str, Tensor]:
    model = VisionTransformer(image_size=8, patch_size=4, dim=12, depth=2, heads=3, num_classes=5)
    return {key: torch.rand(value.shape) for key, value in model.state_dict().items()}


def to_ours(state: dict[str, Tensor], network: StoredNetwork) -> dict[str, Tensor]:
    sources = plan_mapping(network).sources
    return {ours: form.to([state[name] for name in names]) for ours, (form, names) in sources.items()}


@pytest.mark.parametrize(
    "prefix",
    ["module.", "backbone.", "_orig_mod.", "encoder.", "teacher.", "module.backbone.", "module._orig_mod.", "a.b.c."],
)
@pytest.mark.parametrize("name", ["timm", "hf_vit", "torchvision"])
def test_prefixes_are_removed(ours: dict[str, Tensor], name: str, prefix: str) -> None:
    layout = LAYOUTS[name]
    theirs = from_ours(ours, layout, heads=3, inner=layout.inner[0] if layout.inner else "")
    (found,) = recognize_networks([prefix + key for key in theirs])
    assert found.layout is layout
    back = to_ours({prefix + key: value for key, value in theirs.items()}, found)
    assert all(torch.equal(back[key], value) for key, value in ours.items())
    assert plan_mapping(found).unknown == found.others == []


def test_wrappers_inside_of_names_are_removed(ours: dict[str, Tensor]) -> None:
    wrapped = {key.replace("blocks.1.", "blocks.1._orig_mod._fsdp_wrapped_module."): v for key, v in ours.items()}
    (found,) = recognize_networks(wrapped)
    assert to_ours(wrapped, found).keys() == ours.keys()


@pytest.mark.parametrize("head", ["head.", "module.head.", "module.backbone.head."])
def test_a_head_outside_of_the_body_belongs_to_it(ours: dict[str, Tensor], head: str) -> None:
    state = {key.replace("head.", head) if "head" in key else f"module.backbone.{key}": v for key, v in ours.items()}
    (found,) = recognize_networks(state)
    assert (found.prefix, found.others) == ("module.backbone.", [])
    assert torch.equal(to_ours(state, found)["head.weight"], ours["head.weight"])


def test_tensors_of_other_networks_and_unknown_ones_are_distinguished(ours: dict[str, Tensor]) -> None:
    extra = {"backbone.blocks.0.adapter.weight", "backbone.mask_token", "text.embedding.weight", "head.mlp.0.weight"}
    (found,) = recognize_networks([*(f"backbone.{key}" for key in ours), *extra])
    assert set(found.others) == {"text.embedding.weight", "head.mlp.0.weight"}
    assert plan_mapping(found).unknown == ["backbone.blocks.0.adapter.weight"]
    assert plan_mapping(found).skipped == {"backbone.mask_token": "the token of masked patches in pre-training"}


def test_a_part_of_a_stacked_tensor_alone_is_unknown(ours: dict[str, Tensor]) -> None:
    theirs = from_ours(ours, LAYOUTS["hf_vit"], heads=3)
    (gone,) = [name for name in theirs if name.endswith("layer.1.attention.attention.key.weight")]
    (found,) = recognize_networks([name for name in theirs if name != gone])
    plan = plan_mapping(found)
    assert "blocks.1.attn.qkv.weight" not in plan.sources
    assert plan.unknown == [gone.replace("key", part) for part in ("query", "value")]


def test_two_networks_in_one_file_are_both_found(ours: dict[str, Tensor]) -> None:
    found = recognize_networks([f"{who}.{key}" for who in ("student", "teacher") for key in ours])
    assert {each.prefix for each in found} == {"student.", "teacher."}


def test_names_of_another_kind_of_network_are_not_recognized() -> None:
    assert recognize_networks(["conv1.weight", "layer1.0.conv1.weight", "fc.weight"]) == []
    assert recognize_networks(["xpatch_embed.proj.weight"]) == []


def test_a_tensor_that_a_layout_has_no_place_for_is_named(ours: dict[str, Tensor]) -> None:
    scaled = ours | {"blocks.0.ls1.gamma": torch.ones(12), "reg_token": torch.ones(1, 2, 12)}
    with pytest.raises(ValueError, match=r"torchvision's .* has no place for blocks\.0\.ls1\.gamma, reg_token"):
        from_ours(scaled, LAYOUTS["torchvision"], heads=3)


def test_written_tensors_are_contiguous_and_include_those_that_the_library_requires(ours: dict[str, Tensor]) -> None:
    for name in ("google", "hf_vit", "hf_dinov2"):
        state = ours | {f"blocks.{i}.ls{n}.gamma": torch.ones(12) for i in (0, 1) for n in (1, 2)}
        theirs = from_ours(state if name == "hf_dinov2" else ours, LAYOUTS[name], heads=3)
        assert all(value.is_contiguous() for value in theirs.values())
    assert theirs["embeddings.mask_token"].shape == (1, 12)


@pytest.mark.parametrize("mlp_ratio", [1.0, 2.0, 4.0])
def test_a_gated_mlp_is_known_by_its_second_layer(mlp_ratio: float) -> None:
    sizes: dict[str, Any] = {"image_size": 8, "patch_size": 4, "dim": 12, "depth": 1, "heads": 3}
    for activation in ("gelu", "swiglu"):
        state = VisionTransformer(**sizes, mlp_ratio=mlp_ratio, activation=activation).state_dict()
        assert is_gated(state) is (activation == "swiglu")
        for name in ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"):
            assert not is_gated({key: value for key, value in state.items() if key != name})
