"""Fixed positions are the documented sines and cosines, and tables fit another grid as timm's do."""

import math
from itertools import product
from typing import Any

import pytest
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from toy_vit import toy
from vitlab.models.positions import sincos2d_table, table_for
from vitlab.models.vit import VisionTransformer


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images_for(model: VisionTransformer, batch: int = 2) -> Tensor:
    return torch.randn(batch, model.in_channels, *model.image_size)


def close(one: Tensor, two: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance)


def test_fixed_positions_are_sines_and_cosines_of_column_then_row() -> None:
    (table,) = sincos2d_table(2, 40, 8, 80)
    for row, column in product(range(2), range(40)):
        expected = [
            wave(place / 10000 ** (index / 2))
            for place in (column, row)
            for wave in (math.sin, math.cos)
            for index in range(2)
        ]
        close(table[40 * row + column], torch.tensor(expected), 1e-6)


def test_fixed_positions_are_neither_trained_nor_stored_and_spare_the_prefix() -> None:
    model = toy(pos_embed="sincos2d", num_registers=1)
    assert isinstance(model.pos_embed, Tensor)
    assert "pos_embed" not in dict(model.named_parameters())
    assert "pos_embed" not in model.state_dict()
    assert torch.equal(model.pos_embed[0, :2], torch.zeros(2, 24))
    assert torch.equal(model.pos_embed[0, 2:], sincos2d_table(4, 4, 24, 16)[0])
    images = images_for(model)
    sparing = toy(pos_embed="sincos2d", num_registers=1, pos_embed_on_patches_only=True)
    sparing.load_state_dict(model.state_dict())
    assert torch.equal(model(images), sparing(images))


def test_a_learned_table_is_resampled_as_in_timm_and_learns_through_it() -> None:
    table = torch.nn.Parameter(torch.randn(1, 1 + 4 * 6, 8))
    new = table_for(table, (3, 5), (4, 6), 1)
    assert new is not None
    assert torch.equal(new, resample_abs_pos_embed(table, [3, 5], [4, 6], num_prefix_tokens=1))
    new.square().sum().backward()  # type: ignore[no-untyped-call]
    assert table.grad is not None
    assert table.grad.count_nonzero() == table.numel()
    assert table_for(table, (4, 6), (4, 6), 1) is table
    assert table_for(None, (3, 5), (4, 6), 1) is None
    sines = table_for(torch.zeros(1, 1 + 16, 8), (2, 3), (4, 4), 1)
    assert sines is not None
    assert torch.equal(sines, sincos2d_table(2, 3, 8, 7))


@pytest.mark.parametrize("size", [(8, 16), (24, 24)])
@pytest.mark.parametrize("projection", ["conv", "linear"])
def test_images_of_another_size_give_timms_output_and_gradients(size: tuple[int, int], projection: Any) -> None:
    ours = toy(image_size=16, patch_size=4, patch_projection=projection)
    options = {"patch_size": 4, "embed_dim": ours.dim, "depth": ours.depth, "num_heads": ours.heads}
    sizes = {"img_size": 16, "num_classes": ours.num_classes, "dynamic_img_size": True, **options}
    theirs = timm.create_model("vit_tiny_patch16_224", in_chans=ours.in_channels, **sizes)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, ours.in_channels, *size)
    with pytest.raises(ValueError, match="the model expects"):
        ours(images)
    ours.patch_embed.strict_img_size = False
    for model in (ours, theirs):
        model.train()(images).square().sum().backward()
    close(ours(images), theirs(images))
    for name, parameter in theirs.named_parameters():
        close(ours.get_parameter(name).grad, parameter.grad, 1e-4)  # type: ignore[arg-type]
