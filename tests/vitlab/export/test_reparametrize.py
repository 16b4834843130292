"""Tensors that are moved to other places give the same function."""

from typing import Any

import pytest
import torch

from conftest import Exportable
from vitlab.export import reparametrize
from vitlab.models.vit import VisionTransformer


@pytest.mark.parametrize(
    ("before", "covered", "after"),
    [
        ({"num_registers": 2}, 0, {"pos_embed_on_patches_only": True}),
        ({"num_registers": 2, "pos_embed_on_registers": False}, 0, {"pos_embed_on_patches_only": True}),
        ({"num_registers": 2, "pos_embed_on_patches_only": True}, 3, {"pos_embed_on_patches_only": False}),
        ({"num_registers": 2}, 1, {"pos_embed_on_registers": False}),
        ({"pos_embed": "sincos2d"}, 1, {"pos_embed": "learned"}),
        ({"pos_embed": "none"}, 1, {"pos_embed": "learned"}),
        ({"distilled": True}, 2, {}),
        ({"fc_norm": True}, 1, {"fc_norm": False}),
    ],
    ids=str,
)
def test_positions_and_norms_in_other_places_give_the_same_numbers(
    before: dict[str, Any], covered: int, after: dict[str, Any], exportable: Exportable
) -> None:
    trained = exportable(**before)
    names = ("image_size", "patch_size", "num_classes", "dim", "depth", "heads")
    other = VisionTransformer(**{name: trained.arguments[name] for name in names} | before | after).eval()
    other.load_state_dict(reparametrize.network_tensors(trained, covered=covered))
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(other(images), trained.network(images), atol=1e-6, rtol=1e-6)


def test_without_a_number_of_tokens_nothing_is_moved(exportable: Exportable) -> None:
    trained = exportable(num_registers=2)
    found, state = reparametrize.network_tensors(trained, covered=None), trained.network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert "pos_embed" not in reparametrize.network_tensors(exportable(pos_embed="none"), covered=None)


def test_scales_of_one_are_for_every_block(exportable: Exportable) -> None:
    scales = reparametrize.unit_scales(exportable().arguments)
    assert set(scales) == {f"blocks.{i}.ls{n}.gamma" for i in (0, 1) for n in (1, 2)}
    assert all(torch.equal(gamma, torch.ones(32)) for gamma in scales.values())
