"""Stochastic depth drops whole samples."""

from functools import partial

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from vitlab.models import layers
from vitlab.models.vit import Block, VisionTransformer

toy = partial(VisionTransformer, image_size=16, patch_size=4, dim=24, depth=3, heads=2, num_classes=5)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_drop_path_drops_whole_samples_and_keeps_the_expectation() -> None:
    block: Block = toy(drop_path=0.3).blocks[-1].train()
    kept = block.drop(torch.ones(20_000, 2, 3))
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    assert sorted(set(kept.flatten().tolist())) == pytest.approx([0.0, 1 / 0.7])
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)  # the standard error is 0.0046


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
