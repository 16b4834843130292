"""The model equals timm's, its optimizations are exact, and its sizes and costs are the published ones."""

import ast
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.mlp import SwiGLUPacked
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from toy_vit import TIMM_TOY, toy
from vitlab.models import vit
from vitlab.models.vit import VisionTransformer

TINY = {"dim": 192, "heads": 3}
SMALL = {"dim": 384, "heads": 6}
BASE: dict[str, Any] = {}
LARGE = {"dim": 1024, "depth": 24, "heads": 16}
HUGE = {"dim": 1280, "depth": 32, "heads": 16, "patch_size": 14}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def fill(model: nn.Module) -> dict[str, Tensor]:
    """Weights of ordinary size: initial tokens, biases and factors near 0 would hide mistakes."""
    state = {}
    for name, old in model.state_dict().items():
        new = torch.empty(old.shape)
        if old.ndim in (2, 4):  # linear layers and the patch projection keep the scale of what passes
            new.normal_(std=old[0].numel() ** -0.5)
        elif "norm" in name and name.endswith("weight"):
            new.normal_(mean=1.0, std=0.2)
        else:
            new.normal_(std=0.3)
        state[name] = new
    return state


def filled(model: VisionTransformer) -> VisionTransformer:
    model.load_state_dict(fill(model))
    return model.eval()


def twins(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[Any, VisionTransformer]:
    """timm's model and ours, of the same weights, after a strict load in both directions."""
    with torch.device("meta"):  # all weights are overwritten
        one, two = timm.create_model(name, pretrained=False, **theirs), VisionTransformer(**ours)
    state = fill(one)
    two.load_state_dict({key: value.clone() for key, value in state.items()}, strict=True, assign=True)
    one.load_state_dict(state, strict=True, assign=True)
    one.load_state_dict(two.state_dict(), strict=True)
    return one.eval(), two.eval()


def images_for(model: VisionTransformer, batch: int = 2) -> Tensor:
    return torch.randn(batch, model.in_channels, *model.image_size)


def close(one: Tensor, two: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance)


def norm_difference(one: Tensor, two: Tensor) -> float:
    return float(((one - two).norm() / two.norm().clamp_min(1e-12)).detach())


REGISTERS = ({"reg_tokens": 4, "init_values": 1e-5}, {"num_registers": 4, "layer_scale": 1e-5})
SHALLOW = {"depth": 3, "num_classes": 7}  # blocks are alike
THREE = {"depth": 3}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "avg pooling": ({"global_pool": "avg"}, {"pool": "avg"}),
    "every token": ({"global_pool": ""}, {"pool": "none"}),
    "registers and LayerScale": REGISTERS,
    "no position for the prefix": (
        {"no_embed_class": True, "reg_tokens": 2},
        {"pos_embed_on_patches_only": True, "num_registers": 2},
    ),
    "no class token": ({"class_token": False, "global_pool": "avg"}, {"class_token": False, "pool": "avg"}),
    "registers without class token": (
        {"class_token": False, "global_pool": "avg", "reg_tokens": 2},
        {"class_token": False, "pool": "avg", "num_registers": 2},
    ),
    "no position": ({"pos_embed": "none"}, {"pos_embed": "none"}),
    "no qkv bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "not square": (
        {"img_size": (64, 96), "patch_size": (16, 8)},
        {"image_size": (64, 96), "patch_size": (16, 8)},
    ),
    "features": ({"num_classes": 0}, {"num_classes": 0}),
    "features of avg": ({"num_classes": 0, "global_pool": "avg"}, {"num_classes": 0, "pool": "avg"}),
    "one channel": ({"in_chans": 1}, {"in_channels": 1}),
    "another mlp ratio": ({"mlp_ratio": 2.5}, {"mlp_ratio": 2.5}),
    "convolution": ({}, {"patch_projection": "conv"}),
    "explicit attention": ({}, {"fused_attention": False}),
}


def train_alike(one: Any, two: VisionTransformer, batch: int) -> None:
    """Logits, gradients and the parameters after a step of AdamW are timm's.

    AdamW's first step is lr * g / (|g| + eps): the sign of g if eps is tiny, which rounding picks where g is about 0.
    With eps = 1e-3 an error of 1e-7 in g moves the step by at most 1e-4 of lr.
    """
    images = images_for(two, batch)
    outputs = [model(images) for model in (one, two)]
    close(outputs[1], outputs[0])
    for logits in outputs:
        rows = logits.flatten(0, -2)
        torch.autograd.backward(F.cross_entropy(rows, torch.arange(len(rows)) % rows.shape[1]))
    gradients = {name: parameter.grad for name, parameter in one.named_parameters()}
    for name, parameter in two.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(), name
        gradient, expected = parameter.grad, gradients[name]
        if name.endswith("qkv.bias"):
            # A key's bias shifts a row of scores without effect: its gradient is noise. A query's is the small rest of
            # terms that cancel: in float32, timm's own is 1e-5 off its value in float64.
            (queries, _, values), theirs = gradient.chunk(3), expected.chunk(3)
            assert norm_difference(queries, theirs[0]) < 1e-4, name
            assert norm_difference(values, theirs[2]) < 1e-5, name
            gradient, expected = torch.cat([queries, values]), torch.cat([theirs[0], theirs[2]])
        assert norm_difference(gradient, expected) < 1e-5, name
    for model in (one, two):
        torch.optim.AdamW(model.parameters(), lr=5e-3, eps=1e-3, weight_decay=0.05, fused=True).step()
    state = one.state_dict()
    for name, value in two.state_dict().items():
        close(value, state[name])


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        pytest.param("vit_tiny_patch16_224", {}, TINY, id="Ti/16"),
        pytest.param("vit_tiny_patch16_224", {"patch_size": 32}, TINY | {"patch_size": 32}, id="Ti/32"),
        pytest.param("vit_small_patch16_224", {}, SMALL, id="S/16"),
        pytest.param("vit_small_patch32_224", {}, SMALL | {"patch_size": 32}, id="S/32"),
        pytest.param("vit_base_patch16_224", THREE, BASE | THREE, id="B/16"),
        pytest.param("vit_base_patch32_224", {}, BASE | {"patch_size": 32}, id="B/32"),
        pytest.param(
            "vit_large_patch32_224", {"num_classes": 1000} | THREE, LARGE | {"patch_size": 32} | THREE, id="L/32"
        ),
        pytest.param("vit_base_patch16_384", THREE, BASE | {"image_size": 384} | THREE, id="B/16 at 384"),
        pytest.param(
            "vit_small_patch16_224", {"img_size": 384} | THREE, SMALL | {"image_size": 384} | THREE, id="S/16 at 384"
        ),
        pytest.param(
            "vit_little_patch16_reg4_gap_256",
            THREE,
            {"image_size": 256, "dim": 320, "depth": 3, "heads": 5, "mlp_ratio": 5.6, "num_classes": 1000}
            | {"pool": "avg", "class_token": False, "num_registers": 4, "layer_scale": 1e-5}
            | {"pos_embed_on_patches_only": True},
            id="registers and LayerScale at 256, avg pooling",
        ),
    ],
)
def test_published_models_give_timms_logits_gradients_and_step(
    name: str, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    train_alike(*twins(name, theirs, ours), batch=1)


def test_base_16_gives_timms_logits_with_the_trained_weights_where_they_are_cached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no test waits for a network
    name = "vit_base_patch16_224"
    repository = str(timm.get_pretrained_cfg(name).hf_hub_id)  # type: ignore[union-attr]
    if not isinstance(huggingface_hub.try_to_load_from_cache(repository, "model.safetensors"), str):
        pytest.skip(f"{repository} is not in the hub's cache")
    one, two = timm.create_model(name, pretrained=True).eval(), VisionTransformer().eval()
    two.load_state_dict(one.state_dict(), strict=True)
    images = images_for(two)
    with torch.no_grad():
        close(two(images), one(images))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_give_timms_logits_gradients_and_step(variant: str) -> None:
    theirs, ours = VARIANTS[variant]
    theirs, ours = {"img_size": 64} | SHALLOW | theirs, {"image_size": 64} | SHALLOW | TINY | ours
    train_alike(*twins("vit_tiny_patch16_224", theirs, ours), batch=2)


SILU: Any = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (SILU, {"activation": "swiglu"}),
        ({"act_layer": "gelu_tanh"}, {"activation": "gelu_tanh"}),
        ({"pre_norm": True}, {"pre_norm": True}),
        ({"fc_norm": True}, {"fc_norm": True}),
        ({"fc_norm": False, "global_pool": "avg"}, {"fc_norm": False, "pool": "avg"}),
        ({"norm_layer": partial(nn.LayerNorm, eps=0.1)}, {"norm_eps": 0.1}),
    ],
)
def test_activations_and_norms_by_choice_give_timms_logits(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    one, two = timm.create_model("vit_tiny_patch16_224", **TIMM_TOY, **theirs).eval(), toy(**ours).eval()
    state = fill(one)
    one.load_state_dict(state)
    two.load_state_dict(state)
    images = images_for(two)
    close(two(images), one(images))


def test_a_distilled_model_gives_timms_tokens_and_the_mean_of_both_heads() -> None:
    theirs = {"depth": 3, "num_classes": 7}
    one, two = twins("deit_tiny_distilled_patch16_224", theirs, TINY | theirs | {"distilled": True})
    images = images_for(two)
    close(two(images), one(images))
    close(two.forward_features(images), one.forward_features(images))


def test_patches_are_projected_by_one_convolution_or_one_matrix_product() -> None:
    cases: list[tuple[Any, set[str]]] = [("conv", {"convolution"}), ("linear", {"addmm"})]
    for projection, operations in cases:
        embedding = toy(patch_projection=projection).patch_embed
        with FlopCounterMode(display=False) as counter:
            embedding(torch.zeros(2, *embedding.expected))
        assert {str(each).split(".")[-1] for each in counter.get_flop_counts()["Global"]} == operations


def test_by_default_it_is_base_16_of_the_paper_with_nothing_added() -> None:
    with torch.device("meta"):
        model = VisionTransformer()
    assert (model.image_size, model.patch_size, model.in_channels) == ((224, 224), (16, 16), 3)
    assert (model.dim, len(model.blocks), model.heads, model.num_classes) == (768, 12, 12, 1000)
    assert (model.pool, model.prefix, model.covered, model.pre_logits) == ("cls", 1, 1, None)
    assert (model.activation_checkpointing, model.distilled) == (False, False)
    assert (model.patch_dropout, model.position_dropout) == (0.0, 0.0)
    assert all(isinstance(layer, nn.Identity) for layer in (model.norm_pre, model.fc_norm, model.head_dist))
    block = model.blocks[11]
    assert (block.drop_path, block.attn.dropout, block.mlp.dropout) == (0.0, 0.0, 0.0)
    assert model.norm.eps == block.norm1.eps == 1e-6
    assert block.attn.qkv.bias is not None
    assert model.patch_embed.linear


def test_a_hidden_layer_before_the_head_has_a_tanh() -> None:
    model = filled(toy(pre_logits_dim=6))
    images = images_for(model)
    hidden = model.get_parameter("pre_logits.weight") @ model.forward_features(images)[:, 0].T
    logits = model.head((hidden.T + model.get_parameter("pre_logits.bias")).tanh())
    close(model(images), logits)


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="dim=24 is not a multiple of heads=5"):
        toy(heads=5)


@pytest.mark.parametrize("patch_projection", ["conv", "linear"])
def test_a_patch_embedding_is_the_projection_of_each_patch_by_hand(patch_projection: Any) -> None:
    model = filled(toy(image_size=(8, 12), patch_size=(4, 3), patch_projection=patch_projection))
    images, (weight, bias) = images_for(model), model.patch_embed.proj.parameters()
    tokens = model.patch_embed(images)
    assert model.grid == (2, 4)
    for row, column in product(range(2), range(4)):
        patch = images[:, :, 4 * row : 4 * row + 4, 3 * column : 3 * column + 3]
        by_hand = torch.einsum("bcpq,dcpq->bd", patch, weight) + bias
        close(tokens[:, 4 * row + column], by_hand)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_a_last_block_for_the_class_token_alone_equals_a_full_one(fused: bool, qkv_bias: bool) -> None:
    model = filled(toy(fused_attention=fused, qkv_bias=qkv_bias, num_registers=2, layer_scale=0.5))
    images = images_for(model)
    grads = []
    for logits in (model(images), model.forward_head(model.forward_features(images))):
        model.zero_grad()
        logits.square().sum().backward()
        grads.append([logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for short, full in zip(*grads, strict=True):
        assert (short - full).norm() < 1e-5 * full.norm() + 1e-5


def test_a_hooked_projection_of_the_last_block_is_called_for_all_tokens() -> None:
    model, shapes = filled(toy()), []
    images = images_for(model)
    expected = model(images)
    model.blocks[-1].attn.qkv.register_forward_hook(lambda *call: shapes.append(call[2].shape))
    close(model(images), expected)
    assert shapes == [(2, 17, 72)]


def test_fused_attention_equals_the_formula_and_the_maps() -> None:
    fused, plain = filled(toy()), toy(fused_attention=False).eval()
    plain.load_state_dict(fused.state_dict())
    images = images_for(fused)
    close(fused(images), plain(images))
    maps = fused.attention_maps(images)
    assert [tuple(each.shape) for each in maps] == [(2, 2, 17, 17)] * 3
    for each in maps:
        close(each.sum(dim=-1), torch.ones(2, 2, 17))
    attn = fused.blocks[2].attn  # the maps times the values, projected, are what the block computes
    (inputs,) = fused.forward_features(images, layers=[1])
    x = fused.blocks[2].norm1(inputs)
    mixed = (maps[2] @ attn.project(x)[2]).transpose(1, 2).flatten(2)
    close(attn.proj(mixed), attn(x))
    chosen = fused.attention_maps(images, layers=[-1, 0])
    assert torch.equal(chosen[0], maps[2])
    assert torch.equal(chosen[1], maps[0])


def test_features_of_chosen_layers_are_the_outputs_of_those_blocks() -> None:
    model, seen = filled(toy()), []
    images = images_for(model)
    for block in model.blocks:
        block.register_forward_hook(lambda *call: seen.append(call[2]))
    final = model.forward_features(images)
    last, first, also_last = model.forward_features(images, layers=[-1, 0, 2])
    assert torch.equal(last, seen[2])
    assert torch.equal(first, seen[0])
    assert torch.equal(also_last, last)
    assert torch.equal(final, model.norm(last))
    assert len(seen) == 6
    assert len(model.forward_features(images, layers=[0])) == 1
    assert len(seen) == 7, "blocks above the last chosen one need not run"


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_is_not_there_is_named(layer: int) -> None:
    model = toy()
    for method in (model.forward_features, model.attention_maps):
        with pytest.raises(IndexError, match=f"{layer} is not a block; depth=3 has"):
            method(images_for(model), layers=[0, layer])


def test_checkpointing_gives_the_same_gradients_and_dropout() -> None:
    gradients = []
    for activation_checkpointing in (False, True):
        torch.manual_seed(1)
        model = toy(
            activation_checkpointing=activation_checkpointing, dropout=0.2, attention_dropout=0.2, drop_path=0.5
        ).train()
        model(torch.linspace(-1, 1, 2 * 3 * 256).reshape(2, 3, 16, 16)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        close(plain, recomputed, 1e-6)


def test_drop_path_grows_linearly_and_is_off_in_eval() -> None:
    model = toy(drop_path=0.4, depth=5)
    assert [block.drop_path for block in model.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    model.eval()
    images = images_for(model)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))
    assert toy(drop_path=0.4, depth=1).blocks[0].drop_path == 0.0


def test_drop_path_may_be_constant_as_in_deit_iii() -> None:
    model = toy(drop_path=0.4, depth=5, drop_path_schedule="constant")
    assert [block.drop_path for block in model.blocks] == [0.4] * 5


def test_blocks_with_a_rate_above_a_tenth_compute_the_kept_samples_alone() -> None:
    model = toy(drop_path=0.4, depth=5, drop_path_kept_only=True)
    assert [block.kept_only for block in model.blocks] == [False, False, True, True, True]


@pytest.mark.parametrize("variant", ["registers and LayerScale", "avg pooling", "no class token"])
def test_with_patch_dropout_logits_and_gradients_are_timms(variant: str) -> None:
    theirs, ours = VARIANTS[variant]
    arguments = {"depth": 3, "num_classes": 7}
    one, two = twins("vit_tiny_patch16_224", theirs | arguments | {"patch_drop_rate": 0.5},
                     TINY | ours | arguments | {"patch_dropout": 0.5})  # fmt: skip
    images, outputs = images_for(two), []
    for model in (one.train(), two.train()):
        torch.manual_seed(5)
        outputs.append(model(images))
        outputs[-1].square().sum().backward()
    close(outputs[1], outputs[0])
    gradients = {name: parameter.grad for name, parameter in one.named_parameters()}
    for name in ("pos_embed", "patch_embed.proj.weight", "blocks.1.mlp.fc1.weight"):
        gradient = two.get_parameter(name).grad
        assert gradient is not None
        assert norm_difference(gradient, gradients[name]) < 1e-4, name
    close(two.eval()(images), one.eval()(images))


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "position_dropout"])
@pytest.mark.parametrize("fused", [True, False])
def test_each_dropout_acts_in_training_only(rate: str, fused: bool) -> None:
    settings: dict[str, Any] = {rate: 0.5, "fused_attention": fused}
    model = toy(**settings)
    images = images_for(model)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_every_combination_of_pool_position_and_prefix_runs() -> None:
    knobs: dict[str, list[Any]] = {
        "pool": ["cls", "avg", "none"],
        "pos_embed": ["learned", "sincos2d", "none"],
        "class_token": [True, False],
        "num_registers": [0, 2],
        "pos_embed_on_patches_only": [True, False],
        "patch_projection": ["conv", "linear"],
    }
    for values in product(*knobs.values()):
        settings = dict(zip(knobs, values, strict=True))
        if settings["pool"] == "cls" and not settings["class_token"]:
            continue
        model = toy(depth=1, **settings)
        images = images_for(model)
        tokens = 16 + settings["class_token"] + settings["num_registers"]
        assert model(images).shape == ((2, tokens, 5) if settings["pool"] == "none" else (2, 5))
        assert model.forward_features(images).shape == (2, tokens, 24)
        close(model(images), model.forward_head(model.forward_features(images)))


@pytest.mark.parametrize(
    "sizes",
    [
        {"image_size": 4},
        {"depth": 1},
        {"heads": 1},
        {"heads": 24},
        {"in_channels": 1},
        {"num_classes": 1},
        {"patch_size": 1, "image_size": 2},
        {"dim": 1, "heads": 1, "mlp_ratio": 1.0},
    ],
)
def test_degenerate_sizes_run_forward_and_backward(sizes: dict[str, Any]) -> None:
    model = toy(**sizes)
    images = images_for(model, batch=1)
    logits = model(images)
    assert logits.shape == (1, model.num_classes)
    logits.sum().backward()
    assert model(images_for(model, batch=0)).shape == (0, model.num_classes)


def test_no_classes_mean_features() -> None:
    assert toy(num_classes=0)(torch.randn(2, 3, 16, 16)).shape == (2, 24)
    assert toy(num_classes=0, pool="avg")(torch.randn(2, 3, 16, 16)).shape == (2, 24)
    assert toy(num_classes=0, pool="none")(torch.randn(2, 3, 16, 16)).shape == (2, 17, 24)


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 3, 16, 20), (3, 16, 16)])
def test_images_of_another_shape_are_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    came = ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=rf"images are \({came}\), the model expects \(batch, 3, 16, 16\)"):
        toy()(torch.zeros(shape))


def test_tokens_and_positions_are_named_as_not_to_decay() -> None:
    model = toy(num_registers=1, distilled=True)
    assert model.no_weight_decay() == {"pos_embed", "cls_token", "dist_token", "reg_token"}
    assert model.no_weight_decay() <= set(dict(model.named_parameters()))


@pytest.mark.parametrize(("pool", "activation_checkpointing"), [("cls", True), ("avg", False)])
def test_the_model_compiles_as_one_graph_and_keeps_its_names(pool: Any, activation_checkpointing: bool) -> None:
    torch.compiler.reset()
    model = toy(
        depth=2,
        pool=pool,
        drop_path=0.1,
        dropout=0.1,
        num_registers=1,
        activation_checkpointing=activation_checkpointing,
    )
    names, images = list(model.state_dict()), images_for(model)
    model.eval()
    expected = model(images)
    model.compile(fullgraph=True, backend="eager")
    close(model(images), expected)
    model.train()(images).sum().backward()
    assert list(model.state_dict()) == names


def test_the_model_exports_with_a_free_batch_size() -> None:
    model = filled(toy())
    batch = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (images_for(model),), dynamic_shapes=batch)
    images = images_for(model, batch=5)
    close(program.module()(images), model(images))


@pytest.mark.parametrize("pool", ["cls", "avg"])
@pytest.mark.parametrize("pos_embed", ["learned", "none"])
def test_bfloat16_autocast_runs_close_to_float32(pool: Any, pos_embed: Any) -> None:
    model = filled(toy(pool=pool, pos_embed=pos_embed))
    images = images_for(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.bfloat16
    assert norm_difference(logits.float(), model(images)) < 0.03


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        (TINY, 5_717_416),
        (SMALL, 22_050_664),
        (BASE | {"patch_size": 32}, 88_224_232),
        (BASE, 86_567_656),
        (LARGE, 304_326_632),
        (HUGE, 632_045_800),
        (BASE | {"image_size": 384}, 86_859_496),
    ],
    ids=["Ti/16", "S/16", "B/32", "B/16", "L/16", "H/14", "B/16@384"],
)
def test_parameters_count_as_published(sizes: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        model = VisionTransformer(**sizes)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def counted(model: VisionTransformer, forward: Callable[[Tensor], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        forward(images_for(model, batch=1))
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("sizes", "published"),
    [(TINY, 2.507), (SMALL, None), (BASE, 35.128)],
    ids=["Ti", "S", "B"],
)
@pytest.mark.parametrize("patch_projection", ["conv", "linear"])
def test_operations_are_those_of_the_formula(
    sizes: dict[str, Any], published: float | None, patch_projection: Any
) -> None:
    with torch.device("meta"):
        model = VisionTransformer(**sizes, patch_projection=patch_projection)
    patches, width = 14 * 14, model.dim
    tokens = patches + 1

    def block(
        queries: int,
    ) -> int:  # a product of a x b and b x c is a * b * c multiplications and as many additions
        keys_and_values = tokens * width * 2 * width
        attention = 2 * queries * tokens * width  # the scores, and the mixture of values
        per_query = width * width + width * width + 2 * width * 4 * width  # query, projection, MLP
        return 2 * (keys_and_values + attention + queries * per_query)

    ends = 2 * (patches * 3 * 16 * 16 * width + width * 1000)
    full = ends + model.depth * block(tokens)
    assert counted(model, lambda x: model.forward_head(model.forward_features(x))) == full
    assert counted(model, model) == ends + (model.depth - 1) * block(tokens) + block(1)
    if published is not None:
        assert full / 1e9 == pytest.approx(published, abs=5e-4)


def test_the_model_stays_a_lesson() -> None:
    """At most 320 lines, the classes in the order of the data, and no imports but torch and the named siblings."""
    source = Path(vit.__file__).read_text()
    tree = ast.parse(source)
    assert len(source.splitlines()) <= 320
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert classes == ["PatchEmbedding", "MultiHeadAttention", "MLP", "Block", "VisionTransformer"]
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    names = ("attention", "init", "layers", "positions", "timm_interface", "vit_validation")
    siblings = {f"vitlab.models.{name}" for name in names}
    ours = {module for module in imported if module.startswith("vitlab")}
    assert ours == siblings
    others = {module.split(".")[0] for module in imported} - {"vitlab"}
    assert others == {"collections", "functools", "typing", "torch"}
