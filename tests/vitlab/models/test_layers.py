"""Stochastic depth drops whole samples."""

from functools import partial

import pytest
import torch

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
