"""Fixed positions are the documented sines and cosines."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from toy_vit import toy
from vitlab.models.positions import sincos2d_table
from vitlab.models.vit import VisionTransformer


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images_for(model: VisionTransformer, batch: int = 2) -> Tensor:
    return torch.randn(batch, model.in_channels, *model.image_size)


def close(one: Tensor, two: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance)


def test_fixed_positions_are_sines_and_cosines_of_column_then_row() -> None:
    table = sincos2d_table(2, 3, 8, 6)[0]
    for row, column in product(range(2), range(3)):
        expected = [
            wave(place / 10000 ** (index / 2))
            for place in (column, row)
            for wave in (math.sin, math.cos)
            for index in range(2)
        ]
        close(table[3 * row + column], torch.tensor(expected), 1e-6)


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
