"""What users of timm and of other libraries call on a ViT gives on ours what it gives on timm's, of equal weights."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchao.quantization as quantization
from captum.attr import IntegratedGradients, LayerGradCam
from pytorch_grad_cam import GradCAM
from timm.data.config import resolve_model_data_config
from timm.layers.config import set_fused_attn
from timm.models._features import FeatureGetterNet
from timm.optim._param_groups import param_groups_layer_decay
from timm.utils.attention_extract import AttentionExtract
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.tensorboard import SummaryWriter
from torchvision.models.feature_extraction import create_feature_extractor

from vitlab.models.vit import VisionTransformer

toy = partial(VisionTransformer, image_size=16, patch_size=4, dim=24, depth=3, heads=2, num_classes=5)
THEIRS = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "cls": ("vit_tiny_patch16_224", {}, {}),
    "registers": (
        "vit_tiny_patch16_224",
        {"reg_tokens": 2, "init_values": 0.1},
        {"num_registers": 2, "layer_scale": 0.1},
    ),
    "no prefix": (
        "vit_tiny_patch16_224",
        {"class_token": False, "global_pool": "avg", "no_embed_class": True},
        {"class_token": False, "pool": "avg"},
    ),
    "distilled": ("deit_tiny_distilled_patch16_224", {}, {"distilled": True}),
    "not square": ("vit_tiny_patch16_224", {"img_size": (16, 24)}, {"image_size": (16, 24)}),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop because:UserWarning"),  # of vmap over attention
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def twins(variant: str = "cls", **ours: Any) -> tuple[Any, VisionTransformer]:
    """timm's model and ours, of the same weights of ordinary size."""
    name, theirs, arguments = VARIANTS[variant]
    one, two = timm.create_model(name, **THEIRS | theirs).eval(), toy(**arguments | ours).eval()
    one.load_state_dict({name: torch.randn_like(value) * 0.3 for name, value in one.state_dict().items()})
    two.load_state_dict(one.state_dict())
    return one, two


def images_for(model: VisionTransformer, batch: int = 2) -> Tensor:
    return torch.randn(batch, model.in_channels, *model.image_size)


def close(one: Any, two: Any, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
def test_attributes_are_timms(variant: str) -> None:
    one, two = twins(variant)
    names = [
        "num_features",
        "embed_dim",
        "head_hidden_size",
        "num_prefix_tokens",
        "num_classes",
        "global_pool",
        "feature_info",
    ]
    for name in names:
        assert getattr(two, name) == getattr(one, name), name
    assert two.patch_embed.grid_size == one.patch_embed.grid_size
    assert two.patch_embed.num_patches == one.patch_embed.num_patches
    assert type(two.blocks).__name__ == type(one.blocks).__name__ == "Sequential"
    for name in ("num_heads", "head_dim", "fused_attn"):
        assert getattr(two.blocks[0].attn, name) == getattr(one.blocks[0].attn, name)
    for name in ("first_conv", "classifier", "num_classes", "fixed_input_size", "pool_size"):
        expected = one.num_classes if name == "num_classes" else one.pretrained_cfg.get(name)
        assert two.pretrained_cfg[name] == expected
    resolved: Any = resolve_model_data_config(two)  # type: ignore[no-untyped-call]
    assert resolved["input_size"] == (3, *two.image_size)
    heads = [two.get_classifier()] if variant != "distilled" else [*two.get_classifier()]
    assert heads == [two.get_submodule(name) for name in ("head", "head_dist")[: len(heads)]]
    rates = [[group["lr_scale"] for group in param_groups_layer_decay(model)] for model in (one, two)]
    assert rates[0] == rates[1]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"indices": 2, "norm": True},
    {"indices": [-1, 0], "stop_early": True},
    {"indices": [0], "stop_early": True, "intermediates_only": True},
    {"indices": 1, "return_prefix_tokens": True, "output_fmt": "NLC"},
    {"indices": [0, 2], "output_dict": True, "return_prefix_tokens": True},
    {"output_dict": True, "intermediates_only": True, "norm": True, "output_fmt": "NLC"},
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_intermediates_and_the_older_call_give_timms_outputs(variant: str) -> None:
    one, two = twins(variant)
    images = images_for(two)
    for options in OPTIONS:
        ours, theirs = (model.forward_intermediates(images, **options) for model in (two, one))
        assert type(ours) is type(theirs)
        close(ours, theirs)
    for options in ({}, {"n": 2, "reshape": True}, {"n": [0, 2], "return_prefix_tokens": True, "norm": True}):
        close(two.get_intermediate_layers(images, **options), one.get_intermediate_layers(images, **options))


def test_forward_intermediates_trains_with_recomputed_activations() -> None:
    _, two = twins()
    images = images_for(two)
    gradients = []
    for enable in (False, True):
        two.set_grad_checkpointing(enable)
        two.zero_grad()
        final, _ = two.train().forward_intermediates(images)
        (two(images).sum() + final.square().sum()).backward()
        gradients.append(copy.deepcopy(two.patch_embed.proj.weight.grad))
    close(gradients[1], gradients[0])
    assert two.activation_checkpointing


@pytest.mark.parametrize("variant", ["cls", "no prefix", "distilled"])
def test_a_head_is_read_replaced_and_removed_as_timms(variant: str) -> None:
    one, two = twins(variant)
    images = images_for(two)
    features = two.forward_features(images)
    close(two.forward_head(features, pre_logits=True), one.forward_head(one.forward_features(images), pre_logits=True))
    for model in (one, two):
        model.reset_classifier(0)
    close(two(images), one(images))
    two.reset_classifier(7)
    assert two.num_classes == 7
    assert two(images).shape == (2, 7)
    if variant != "distilled":
        for pool in ("avg", ""):
            for model in (one, two):
                model.reset_classifier(0, pool)
            close(two(images), one(images))
    with pytest.raises(ValueError, match="global_pool='max' doesn't fit; use 'avg'"):
        two.reset_classifier(7, "max")


def test_what_the_head_reads_includes_a_hidden_layer() -> None:
    model = toy(pre_logits_dim=6)
    images = images_for(model)
    hidden = model.forward_head(model.forward_features(images), pre_logits=True)
    assert hidden.shape == (2, model.head_hidden_size) == (2, 6)
    close(model.head(hidden), model(images))
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_removed_blocks_leave_timms_outputs(variant: str) -> None:
    one, two = twins(variant)
    images = images_for(two)
    kept = [model.prune_intermediate_layers([0, 1], prune_norm=True) for model in (one, two)]
    assert kept == [[0, 1]] * 2
    assert two.depth == len(two.blocks) == 2
    close(two.forward_features(images), one.forward_features(images))
    close(two.attention_maps(images)[1].sum(-1), torch.ones(()).expand(two.attention_maps(images)[1].shape[:3]))
    close(two(images), one(images))


def test_features_alone_are_timms() -> None:
    one, two = twins()
    wrapped = [FeatureGetterNet(model, out_indices=(0, 1), norm=True) for model in (one, two)]
    assert wrapped[1].feature_info.channels() == wrapped[0].feature_info.channels() == [24, 24]
    images = images_for(two)
    close(wrapped[1](images), wrapped[0](images))


@pytest.mark.parametrize("variant", ["cls", "no prefix", "not square"])
def test_another_input_size_gives_timms_weights(variant: str) -> None:
    one, two = twins(variant)
    for sizes in ({"img_size": (24, 32)}, {"patch_size": (8, 8)}, {"img_size": (16, 16), "patch_size": (2, 4)}):
        for model in (one, two):
            model.set_input_size(**sizes)
        assert two.grid == two.patch_embed.grid_size == one.patch_embed.grid_size
        close(two.state_dict(), dict(one.state_dict()))
        images = images_for(two)
        close(two(images), one(images))
        close(two.forward_intermediates(images), one.forward_intermediates(images))
    with pytest.raises(ValueError, match=r"img_size=\(18, 18\) is not a multiple of patch_size=\(2, 4\)"):
        two.set_input_size((18, 18))


def test_fixed_positions_follow_the_input_size() -> None:
    model, other = toy(pos_embed="sincos2d"), toy(pos_embed="sincos2d", image_size=24)
    model.set_input_size((24, 24))
    close(model.pos_embed, other.pos_embed)
    other.load_state_dict(model.state_dict())
    close(model(torch.ones(2, 3, 24, 24)), other(torch.ones(2, 3, 24, 24)))


def test_hooks_on_attn_drop_get_the_weights_and_so_do_timms_tools() -> None:
    one, two = twins()
    images = images_for(two)
    maps, logits = two.attention_maps(images), two(images)
    close(two.get_last_selfattention(images), maps[2])
    seen: list[Tensor] = []
    handles = [block.attn.attn_drop.register_forward_hook(lambda *call: seen.append(call[2])) for block in two.blocks]
    close(two(images), logits)
    close(seen, maps)
    for handle in handles:
        handle.remove()
    for method in ("hook", "fx"):
        for block in (*one.blocks, *two.blocks):
            block.attn.fused_attn = False
        taken = [AttentionExtract(model, method=method)(images) for model in (copy.deepcopy(one), copy.deepcopy(two))]
        assert len(taken[1]) == 3
        close([*taken[1].values()], [*taken[0].values()])
        close([*taken[1].values()], maps)


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_torch_fx_traces_all_calls_and_any_batch_size(variant: str, rate: float) -> None:
    _, model = twins(variant, drop_path=rate, dropout=rate, attention_dropout=rate, activation_checkpointing=rate > 0)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            traced = torch.fx.symbolic_trace(model)
        called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
        assert {"patch_embed.proj", "blocks.2.attn.qkv", "norm"} <= called
        images = images_for(model, batch=3)
        close(traced(images), model(images))
    kept_only = toy(drop_path=0.5, drop_path_kept_only=True).train()
    assert torch.fx.symbolic_trace(kept_only)(images_for(kept_only)).isfinite().all()


def test_torchvision_extracts_features() -> None:
    one, two = twins()
    nodes = {"blocks.1": "middle", "blocks.2": "last", "blocks.2.attn.qkv": "qkv", "norm": "norm", "head": "head"}
    images = images_for(two)
    ours, theirs = (create_feature_extractor(model, nodes)(images) for model in (two, one))
    close(ours, theirs)
    assert ours["last"].shape == (2, 17, 24)


def test_jit_traces_and_tensorboard_draws_the_network(tmp_path: Any) -> None:
    _, model = twins()
    traced = torch.jit.trace(model, images_for(model, batch=1))  # type: ignore[no-untyped-call]
    images = images_for(model, batch=3)
    close(traced(images), model(images))
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_graph(model, images)
    (file,) = tmp_path.iterdir()
    assert b"blocks" in file.read_bytes()


def test_it_exports_and_compiles_in_one_piece_for_any_batch_size() -> None:
    _, model = twins()
    program = torch.export.export(model, (images_for(model),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for batch in (2, 5):
        images = images_for(model, batch)
        close(program.module()(images), model(images))
        close(compiled(images), model(images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ensembles_and_gradients_of_each_sample_are_vectorized(dtype: torch.dtype) -> None:
    models = [twins()[1].to(dtype) for _ in range(2)]
    images = images_for(models[0], batch=3).to(dtype)
    stacked = stack_module_state(models)
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    together = vmap(lambda state, buffers: functional_call(models[0], (state, buffers), (images,)))(*stacked)
    close(together, torch.stack([model(images) for model in models]), tolerance)

    def loss(state: dict[str, Tensor], image: Tensor) -> Any:
        return functional_call(models[0], state, (image[None],)).float().square().sum()

    state = {name: value.detach() for name, value in models[0].named_parameters()}
    each = vmap(grad(loss), in_dims=(None, 0))(state, images)
    models[0](images).float().square().sum().backward()
    for name, parameter in models[0].named_parameters():
        assert parameter.grad is not None
        assert (each[name].sum(0) - parameter.grad).norm() <= tolerance * parameter.grad.norm() + 1e-3, name


def test_captum_attributes_as_on_timms() -> None:
    one, two = twins()
    images = images_for(two)
    for attribute in (
        lambda model: IntegratedGradients(model).attribute(images, target=1, n_steps=5),
        lambda model: LayerGradCam(model, model.blocks[2].norm1).attribute(images, target=1, attr_dim_summation=False),
        lambda model: LayerGradCam(model, model.patch_embed.proj).attribute(images, target=1),
    ):
        close(attribute(two), attribute(one), 1e-3)  # type: ignore[no-untyped-call]


def test_grad_cam_draws_as_on_timms() -> None:
    one, two = twins()
    images = images_for(two)

    def to_maps(x: Tensor) -> Any:
        return x[:, 1:].transpose(1, 2).reshape(len(x), -1, 4, 4)

    drawn = []
    for model in (one, two):
        with GradCAM(model=model, target_layers=[model.blocks[-1].norm1], reshape_transform=to_maps) as cam:
            drawn.append(cam(input_tensor=images, targets=None))
    assert drawn[0].std() > 0.05
    np.testing.assert_allclose(drawn[1], drawn[0], atol=1e-3)


@pytest.mark.parametrize("scheme", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao_quantizes_to_int8_as_timms(scheme: str) -> None:
    one, two = twins()
    images = images_for(two)
    exact = two(images).detach()
    for model in (one, two):
        quantization.quantize_(model, getattr(quantization, scheme)())
    errors = [float((model(images).detach() - exact).norm() / exact.norm()) for model in (one, two)]
    assert 0 < errors[1] < 1.5 * errors[0] < 0.1


def test_set_fused_attn_of_timm_holds_for_networks_built_afterwards() -> None:
    try:
        set_fused_attn(False)
        plain = toy()
    finally:
        set_fused_attn(True)
    fused = toy()
    assert [network.blocks[0].attn.fused_attn for network in (plain, fused)] == [False, True]
