"""The architecture is inferred from shapes, then from the configuration; what our model can't be is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitlab.models.vit import VisionTransformer
from vitlab.weights.configuration import transformers_hints
from vitlab.weights.files import FileContent, UnreadableWeights
from vitlab.weights.infer import infer_architecture, mlp_ratio
from vitlab.weights.layouts import LAYOUTS
from vitlab.weights.locate import WeightFiles

BASE: dict[str, Any] = {"image_size": 32, "patch_size": 8, "dim": 128, "depth": 2, "heads": 2, "num_classes": 7}


def opened(**said: Any) -> WeightFiles:
    nothing: dict[str, Any] = {"config": {}, "preprocessor": {}, "open_clip": {}, "record": {}, "timm_name": None}
    return WeightFiles(source="x", file=Path("x"), content=FileContent({}, {}), **nothing | said)


def state(**arguments: Any) -> dict[str, Tensor]:
    with torch.device("meta"):
        return VisionTransformer(**BASE | arguments).state_dict()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_registers": 3},
        {"num_registers": 3, "pos_embed_on_registers": False},
        {"num_registers": 3, "pos_embed_on_patches_only": True},
        {"distilled": True},
        {"pool": "avg", "class_token": False},
        {"pool": "avg", "fc_norm": False},
        {"pre_norm": True},
        {"layer_scale": 1e-5, "qkv_bias": False},
        {"activation": "swiglu", "mlp_ratio": 3.0},
        {"pre_logits_dim": 20},
        {"num_classes": 0},
        {"in_channels": 1, "patch_size": (8, 4), "image_size": (32, 16)},
        {"pos_embed": "none"},
        {"mlp_ratio": 3.7362},
    ],
    ids=str,
)
def test_an_architecture_is_inferred_from_shapes(arguments: dict[str, Any]) -> None:
    asked = {"pool": "avg"} if arguments.get("fc_norm") is False else {}
    asked |= {"pos_embed": "none"} if arguments.get("pos_embed") == "none" else {}
    found = infer_architecture(state(**arguments), LAYOUTS["timm"], opened(), asked)
    with torch.device("meta"):
        again = VisionTransformer(**found.arguments)
        model = VisionTransformer(**BASE | arguments)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert (again.pool, again.heads, again.prefix) == (model.pool, model.heads, model.prefix)
    assert "heads" in found.assumed
    if arguments.get("pos_embed") != "none":
        assert again.grid == model.grid


@pytest.mark.parametrize(
    ("arguments", "pool", "fc_norm"),
    [({}, "cls", None), ({"fc_norm": True}, "cls", True), ({"pool": "avg"}, "avg", None), ({}, "avg", False)],
)
def test_a_norm_after_pooling_is_an_argument_only_where_the_pooling_leaves_it_open(
    arguments: dict[str, Any], pool: str, fc_norm: bool | None
) -> None:
    inferred = infer_architecture(state(**arguments), LAYOUTS["timm"], opened(), {"pool": pool})
    assert inferred.arguments["fc_norm"] is fc_norm


def test_positions_without_a_square_grid_need_the_image_size() -> None:
    odd = state(image_size=(24, 48))
    with pytest.raises(
        UnreadableWeights,
        match=r"pos_embed has 19 positions, not a square grid; set weights\.image_size=\[HEIGHT,WIDTH\]",
    ):
        infer_architecture(odd, LAYOUTS["timm"], opened(), {})
    with pytest.raises(UnreadableWeights, match=r"19 positions, not a square grid or that of images of 32; set"):
        infer_architecture(odd, LAYOUTS["timm"], opened(), {}, 32)
    found = infer_architecture(odd, LAYOUTS["timm"], opened(), {}, (24, 48))
    assert found.arguments["image_size"] == (24, 48)
    assert infer_architecture(odd, LAYOUTS["timm"], opened(), {"image_size": (48, 24)}).arguments["image_size"] == (
        48,
        24,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_embed.proj.weight": None}, "there is no patch_embed.proj.weight"),
        ({"blocks.0.mlp.fc1.weight": None}, "there is no blocks.0.mlp.fc1.weight"),
        ({"blocks.7.norm1.weight": (128,)}, "blocks.2.mlp.fc1.weight is missing"),
        ({"norm.weight": None}, "no norm after its last block"),
        ({"patch_embed.proj.bias": None}, "must have either a bias of the patches or a norm before the blocks"),
        ({"patch_embed.proj.weight": (128, 192)}, "has 2 dimensions"),
    ],
)
def test_tensors_that_our_model_cant_have_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    broken = state()
    for name, shape in change.items():
        if shape is None:
            del broken[name]
        else:
            broken[name] = torch.empty(shape, device="meta")
    with pytest.raises(UnreadableWeights, match=message):
        infer_architecture(broken, LAYOUTS["timm"], opened(), {})


def test_unknown_heads_must_be_set() -> None:
    with pytest.raises(UnreadableWeights, match=r"the number of heads is unknown for dim=60; set model\.heads"):
        infer_architecture(state(dim=60), LAYOUTS["timm"], opened(), {})
    assert infer_architecture(state(dim=60), LAYOUTS["timm"], opened(), {"heads": 2}).arguments["heads"] == 2


@pytest.mark.parametrize(("dim", "heads"), [(1152, 16), (1408, 16), (1664, 16), (1280, 20), (192, 3)])
def test_published_widths_have_their_heads(dim: int, heads: int) -> None:
    architecture = infer_architecture(state(dim=dim, heads=1), LAYOUTS["timm"], opened(), {})
    assert architecture.arguments["heads"] == heads
    assert "heads" in architecture.assumed


def test_positions_that_nothing_describes_must_be_set() -> None:
    tensors = state(pos_embed="none")
    with pytest.raises(UnreadableWeights, match=r"no table of positions.*rotary.*set model\.pos_embed"):
        infer_architecture(tensors, LAYOUTS["timm"], opened(), {})
    asked = {"pos_embed": "sincos2d"}
    found = infer_architecture(tensors, LAYOUTS["timm"], opened(), asked).arguments
    assert (found["pos_embed"], found["image_size"]) == ("sincos2d", 8 * 14), "14 x 14 patches, if nothing is known"
    found = infer_architecture(tensors, LAYOUTS["timm"], opened(), asked, 48).arguments
    assert found["image_size"] == 48


@pytest.mark.parametrize("pre_norm", [False, True])
def test_an_unknown_epsilon_is_clips_with_a_norm_before_the_blocks_and_else_that_of_vits(pre_norm: bool) -> None:
    found = infer_architecture(state(pre_norm=pre_norm), LAYOUTS["timm"], opened(), {})
    assert found.arguments["norm_eps"] == (1e-5 if pre_norm else 1e-6)
    assert "norm_eps" in found.assumed


def test_openclips_configuration_is_used_or_refused() -> None:
    vision = {"width": 128, "head_width": 32, "image_size": 32, "layers": 2, "patch_size": 8}
    files = opened(open_clip={"model_cfg": {"quick_gelu": True, "vision_cfg": vision}})
    architecture = infer_architecture(state(), LAYOUTS["open_clip"], files, {})
    assert (architecture.arguments["heads"], architecture.arguments["activation"]) == (4, "quick_gelu")
    assert (architecture.assumed, architecture.origin) == ({}, "open_clip_config.json")
    vision["attentional_pool"] = True
    with pytest.raises(UnreadableWeights, match=r"open_clip_config.json: vision_cfg\.attentional_pool"):
        infer_architecture(state(), LAYOUTS["open_clip"], files, {})


def test_transformers_config_is_used() -> None:
    config = {"model_type": "vit", "num_attention_heads": 4, "hidden_act": "gelu_new", "image_size": [32, 32]}
    found = infer_architecture(state(), LAYOUTS["hf_vit"], opened(config=config), {})
    assert [found.arguments[key] for key in ("heads", "activation", "norm_eps")] == [4, "gelu_tanh", 1e-12]
    assert (found.assumed, found.origin) == ({}, "config.json")
    vision = {"model_type": "clip", "vision_config": {"layer_norm_eps": 1e-4, "hidden_act": "gelu"}}
    assert transformers_hints(vision) == {"heads": 12, "norm_eps": 1e-4, "activation": "gelu"}
    assert transformers_hints({"model_type": "dinov2"}) == {"heads": 12, "norm_eps": 1e-6}
    with pytest.raises(UnreadableWeights, match="hidden_act=relu is none of gelu, quick_gelu"):
        transformers_hints(config | {"hidden_act": "relu"})


def test_a_runs_own_configuration_is_used() -> None:
    model = {
        "_target_": "vitlab.models.vit.VisionTransformer",
        **BASE,
        "pos_embed": "sincos2d",
        "heads": 4,
        "norm_eps": 1e-5,
    }
    found = infer_architecture(
        state(pos_embed="sincos2d"), LAYOUTS["timm"], opened(record={"config": {"model": model}}), {}
    )
    assert [found.arguments[key] for key in ("heads", "norm_eps", "pos_embed", "image_size")] == [
        4,
        1e-5,
        "sincos2d",
        32,
    ]


@pytest.mark.parametrize(("hidden", "dim"), [(6144, 1408), (8192, 1664), (4304, 1152), (768, 192), (1, 3)])
def test_a_ratio_gives_back_the_width_it_is_of(hidden: int, dim: int) -> None:
    assert int(dim * mlp_ratio(hidden, dim)) == hidden
    assert mlp_ratio(4 * dim, dim) == 4.0
