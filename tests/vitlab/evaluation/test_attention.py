"""Attention maps are those of the network as it runs, of vitlab's and of timm's real networks."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from parity import fill
from vitlab.evaluation import attention
from vitlab.evaluation.attention import Trace, trace
from vitlab.models.vit import VisionTransformer

Build = Callable[[], nn.Module]


def ours(**settings: Any) -> Build:
    shape = {"image_size": (32, 48), "patch_size": 8, "dim": 32, "depth": 3, "heads": 4, "num_classes": 10}
    return lambda: VisionTransformer(**{**shape, **settings})


def theirs(name: str, **settings: Any) -> Build:
    shape = {"img_size": (32, 48), "depth": 2, "num_classes": 10}
    return lambda: timm.create_model(name, pretrained=False, **{**shape, **settings})


NETWORKS: dict[str, Build] = {
    "ours": ours(),
    "ours, avg": ours(pool="avg"),
    "ours without [cls]": ours(pool="avg", class_token=False, pos_embed="none"),
    "ours, registers": ours(num_registers=3, layer_scale=0.1, pre_norm=True),
    "ours, distilled": ours(distilled=True),
    "ours, each token": ours(pool="none"),
    "ours, formula, checkpointing": ours(fused_attention=False, activation_checkpointing=True),
    "vit_tiny": theirs("vit_tiny_patch16_224"),
    "vit_tiny, avg": theirs("vit_tiny_patch16_224", global_pool="avg"),
    "vit_tiny without [cls]": theirs("vit_tiny_patch16_224", global_pool="avg", class_token=False),
    "dinov2 with registers": theirs("vit_small_patch14_reg4_dinov2", img_size=(28, 42)),
    "deit distilled": theirs("deit_tiny_distilled_patch16_224"),
    "siglip": theirs("vit_base_patch16_siglip_224", embed_dim=64, num_heads=4),
    "eva02": theirs("eva02_tiny_patch14_224", img_size=(28, 42)),
    "dinov3": theirs("vit_small_patch16_dinov3"),
    "beit": theirs("beit_base_patch16_224", embed_dim=64, num_heads=4),
    "relative positions": theirs("vit_relpos_small_patch16_224"),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    fill(network := NETWORKS[request.param]())
    return network.eval()


def images_for(network: nn.Module) -> Tensor:
    size = (28, 42) if getattr(network, "patch_embed", None) is not None and patch(network) == 14 else (32, 48)
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def patch(network: Any) -> int:
    return int(network.patch_embed.proj.kernel_size[0])


def test_a_trace_has_the_networks_logits_and_weights_that_sum_to_one(network: nn.Module) -> None:
    images = images_for(network)
    before = [dict(vars(module)) for module in network.modules()]
    with torch.no_grad():
        found, expected = trace(network, images), network(images)
    expected = expected.mean(dim=1) if expected.ndim == 3 else expected
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-5)
    tokens = found.prefix + math.prod(found.grid)
    assert found.grid == ((2, 3) if patch(network) > 8 else (4, 6))
    for weights, output in zip(found.maps, found.tokens, strict=True):
        assert weights.shape[2:] == (tokens, tokens)
        assert output.shape[1] == tokens
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:3]))
    after = [dict(vars(module)) for module in network.modules()]
    assert [list(now) for now in after] == [list(then) for then in before]
    names = ("fused", "fused_attn", "activation_checkpointing", "grad_checkpointing")
    for then, now in zip(before, after, strict=True):
        assert {name: now.get(name) for name in names} == {name: then.get(name) for name in names}
    assert all(not module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["ours", "ours, registers", "vit_tiny", "vit_tiny without [cls]", "deit distilled"])
def test_the_weights_times_the_values_through_proj_are_the_fused_output_of_each_attention(name: str) -> None:
    fill(built := NETWORKS[name]())
    network: Any = built.eval()
    calls: list[tuple[Tensor, Tensor]] = []
    for block in network.blocks:
        block.attn.register_forward_hook(lambda module, inputs, output: calls.append((inputs[0], output)))
    images = images_for(network)
    with torch.no_grad():
        network.forward_features(images)  # fused
        fused, maps = [*calls], trace(network, images).maps
        for block, (x, output), weights in zip(network.blocks, fused, maps, strict=True):
            heads = weights.shape[1]
            v = block.attn.qkv(x).view(*x.shape[:2], 3, heads, -1)[:, :, 2].transpose(1, 2)
            mixed = block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
            torch.testing.assert_close(mixed, output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny", "dinov2 with registers", "eva02", "dinov3", "beit", "relative positions"])
def test_the_maps_equal_those_that_timms_own_formula_computes(name: str) -> None:
    fill(built := NETWORKS[name]())
    network: Any = built.eval()
    images = images_for(network)
    with torch.no_grad():
        maps, theirs = trace(network, images).maps, list[Tensor]()
        for block in network.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: theirs.append(output))
        network(images)
    for found, expected in zip(maps, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_head_depends_on_exactly_the_tokens_that_it_reads(network: nn.Module) -> None:
    found = trace(network, images_for(network))
    torch.testing.assert_close(found.read.sum(dim=1), torch.ones(2))
    (gradient,) = torch.autograd.grad(found.logits.square().sum(), found.tokens[-1])
    depends = gradient.abs().sum(dim=2) > 1e-7
    if getattr(network, "pool", None) == "none":
        depends[:, : found.prefix] = False  # it classifies the prefix too
    if found.pooled is None:
        assert torch.equal(depends, found.read > 0)


@pytest.mark.parametrize("name", ["resnet18", "hiera_tiny_224", "cait_xxs24_224"])
def test_a_network_without_one_grid_of_tokens_is_refused(name: str) -> None:
    settings: dict[str, Any] = {"depth": 1} if name.startswith("cait") else {}
    network = timm.create_model(name, pretrained=False, num_classes=3, **settings).eval()
    kind = type(network).__name__
    with pytest.raises(ValueError, match=f"{kind}: (attention maps need a Vision Transformer|a block doesn't call)"):
        trace(network, torch.zeros(1, 3, 224, 224))


def test_a_network_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="in evaluation mode"):
        trace(ours()().train(), torch.zeros(1, 3, 32, 48))


# ------------------------------------------------------------------------------------------- cases computed by hand


def made(*maps: Tensor, prefix: int = 0, grid: tuple[int, int] = (1, 2), read: int | None = None) -> Trace:
    """A trace of one image with patches of 10 x 30 pixels."""
    tokens = maps[0].shape[-1]
    share = torch.full((1, tokens), 1 / tokens) if read is None else torch.eye(tokens)[read][None]
    return Trace([m[None] for m in maps], None, [], torch.zeros(1, 2), share, prefix, grid, (10, 30))


def test_rollout_is_the_product_of_the_averages_of_attention_and_identity() -> None:
    first = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 1, 0], [0, 0, 1], [0, 1, 0]]])  # 2 heads
    second = torch.tensor([[[0.2, 0.2, 0.6], [0, 1, 0], [0, 0, 1]]] * 2)
    a, b = (0.5 * m.mean(dim=0) + 0.5 * torch.eye(3) for m in (first, second))
    found = attention.rollout(made(first, second, prefix=1, read=0))
    torch.testing.assert_close(found, (b @ a)[0, 1:].view(1, 1, 2))
    # by hand: the row of [cls] after the second block is (.6, .1, .3)
    torch.testing.assert_close(found, torch.tensor([[[0.6 * 0.25 + 0.1 * 0.75 + 0.3 * 0.25, 0.1 * 0.25 + 0.3 * 0.75]]]))


def test_a_mean_query_reads_the_mean_of_the_rows() -> None:
    weights = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    torch.testing.assert_close(attention.head_attention(made(weights)), torch.tensor([[[[[0.75, 0.25]]]]]))


def test_distance_is_in_pixels_and_ignores_the_prefix() -> None:
    equal, own = torch.full((1, 2, 2), 0.5), torch.eye(2)[None]
    assert attention.attention_distance(made(equal, own)).flatten().tolist() == [15.0, 0.0]  # of patches 30 wide
    tall = made(equal, grid=(2, 1))
    assert attention.attention_distance(tall).flatten().tolist() == [5.0]
    prefix = torch.tensor([[[1.0, 0, 0], [0.8, 0.1, 0.1], [0.8, 0.2, 0.0]]])
    assert attention.attention_distance(made(prefix, prefix=1)).item() == pytest.approx((15 + 30) / 2)


def test_entropy_is_log_n_for_equal_weights_and_zero_for_one_token() -> None:
    found = attention.attention_entropy(made(torch.full((1, 4, 4), 0.25), torch.eye(4)[None], grid=(2, 2))).flatten()
    torch.testing.assert_close(found, torch.tensor([math.log(4), 0.0]))
