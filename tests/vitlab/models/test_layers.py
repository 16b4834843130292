"""Stochastic depth drops whole samples, in both of its forms; patches are dropped as timm drops them."""

import pytest
import torch
from timm.layers.patch_dropout import PatchDropout
from torch import nn
from transformers.activations import ACT2FN

from toy_vit import toy
from vitlab.models import layers
from vitlab.models.vit import Block


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_drop_path_drops_whole_samples_and_keeps_the_expectation() -> None:
    block: Block = toy(drop_path=0.3).blocks[-1].train()
    kept = block.drop(torch.ones(20_000, 2, 3))
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    assert sorted(set(kept.flatten().tolist())) == pytest.approx([0.0, 1 / 0.7])
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)  # the standard error is 0.0046


@pytest.mark.parametrize("queries", [None, 1])
def test_the_kept_samples_alone_are_computed_and_scaled(queries: int | None) -> None:
    """DINOv2's form: a permutation's first int(B * (1 - rate)) samples, twice, times B over their number."""
    block: Block = toy(drop_path=0.4, drop_path_kept_only=True, layer_scale=0.5).blocks[-1].train()
    x = torch.randn(9, 17, 24)
    sizes: list[int] = []
    hooked: list[nn.Module] = [block.attn, block.mlp]
    for part in hooked:
        part.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    torch.manual_seed(3)
    got = block(x, queries)
    assert sizes == [5, 5]
    torch.manual_seed(3)
    expected = x[:, :queries].clone()
    rows = torch.randperm(9)[:5]
    expected[rows] += block.ls1(block.attn(block.norm1(x[rows]), queries)) * 9 / 5
    rows = torch.randperm(9)[:5]
    expected[rows] += block.ls2(block.mlp(block.norm2(expected[rows]))) * 9 / 5
    torch.testing.assert_close(got, expected)
    assert torch.equal(block.eval()(x, queries), toy_without_drop(block)(x, queries))


def toy_without_drop(block: Block) -> Block:
    other: Block = toy(layer_scale=0.5).blocks[-1].eval()
    other.load_state_dict(block.state_dict())
    return other


def test_both_forms_of_stochastic_depth_have_the_same_expectation() -> None:
    x, means = torch.randn(1, 17, 24).expand(4000, -1, -1), []
    for kept_only in (False, True):
        torch.manual_seed(0)
        block: Block = toy(drop_path=0.4, drop_path_kept_only=kept_only, layer_scale=1.0).blocks[-1].train()
        with torch.no_grad():
            outputs = block(x)
        means.append(outputs.mean(dim=0))
        spread = outputs.std(dim=0) / 4000**0.5
        assert float(spread.max()) < 0.05
    assert float(((means[0] - means[1]) / spread).abs().max()) < 5


def test_a_rate_of_at_most_a_tenth_and_a_single_sample_are_not_subsets() -> None:
    outputs = []
    for kept_only in (False, True):
        torch.manual_seed(0)
        model = toy(drop_path=0.1, drop_path_kept_only=kept_only).train()
        outputs.append(model(torch.ones(8, 3, 16, 16)))
    assert torch.equal(*outputs)
    block: Block = toy(drop_path=0.4, drop_path_kept_only=True).blocks[-1].train()
    x = torch.randn(1, 17, 24)
    torch.testing.assert_close(block(x), block.eval()(x))


def test_of_few_samples_at_a_high_rate_one_is_kept() -> None:
    changed = layers.add_branch(torch.zeros(3, 4), 0.9, lambda kept: torch.ones(len(kept), 4))
    assert sorted(changed.sum(1).tolist()) == [0.0, 0.0, 12.0]


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.99])
def test_patches_are_dropped_as_timm_drops_them(prefix: int, rate: float) -> None:
    x = torch.randn(5, prefix + 11, 8)
    torch.manual_seed(4)
    got = layers.patch_dropout(x, rate, prefix, training=True)
    torch.manual_seed(4)
    assert torch.equal(got, PatchDropout(rate, num_prefix_tokens=prefix)(x))
    assert got.shape[1] == prefix + max(1, int(11 * (1 - rate)))
    assert layers.patch_dropout(x, rate, prefix, training=False) is x
    assert layers.patch_dropout(x, 0.0, prefix, training=True) is x


def test_activations_are_those_of_torch_and_transformers() -> None:
    x = torch.randn(5, 8)
    expected = {
        "gelu": nn.GELU()(x),
        "gelu_tanh": nn.GELU("tanh")(x),
        "quick_gelu": ACT2FN["quick_gelu"](x),
        "swiglu": nn.SiLU()(x[:, :4]) * x[:, 4:],
    }
    assert expected.keys() == layers.ACTIVATIONS.keys()
    for name, activation in layers.ACTIVATIONS.items():
        torch.testing.assert_close(activation(x), expected[name])


def test_layer_scale_multiplies_each_channel_by_its_factor() -> None:
    scale = layers.LayerScale(dim=3, value=0.1)
    scale.gamma.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(scale(torch.full((1, 2, 3), 2.0)), torch.tensor([[[2.0, 4.0, 6.0]] * 2]))


def test_dropout_is_for_training_at_a_rate() -> None:
    x = torch.ones(1000)
    assert layers.dropout(x, 0.5, training=False) is x
    assert layers.dropout(x, 0.0, training=True) is x
    dropped = layers.dropout(x, 0.2, training=True)
    assert 700 < int((dropped == 1.25).sum()) < 900
    assert int((dropped == 0).sum()) == 1000 - int((dropped == 1.25).sum())
