"""Position tables and patch projections on other grids are timm's, and compute what they should."""

import pytest
import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models._manipulate import adapt_input_conv
from torch import Tensor
from torch.nn import functional as F

from vitlab.weights.resample import change_channels, change_positions, resample_patches, resample_positions


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("old", "new"), [((14, 14), (24, 24)), ((24, 24), (7, 9)), ((4, 6), (6, 4)), ((3, 3), (3, 3))])
def test_positions_on_another_grid_are_timms(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = torch.randn(1, old[0] * old[1], 8)
    expected = resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=0)
    assert torch.equal(resample_positions(table, old, new), expected)


def test_positions_of_a_plane_stay_a_plane() -> None:
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    table = torch.stack([rows, columns], dim=-1).reshape(1, 256, 2)
    finer = resample_positions(table, (16, 16), (32, 48)).reshape(32, 48, 2)
    middle = finer[8:-8, 8:-8]
    assert torch.allclose(middle[:, 0, 0].diff().diff(), torch.zeros(14), atol=1e-5)
    assert middle[0, -1, 1] > middle[0, 0, 1]


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (16, 12)])
def test_patches_of_another_size_are_timms(size: tuple[int, int]) -> None:
    kernel = torch.randn(5, 3, 16, 16)
    assert torch.equal(resample_patches(kernel, size), resample_patch_embed(kernel, list(size)))


def test_an_enlarged_patch_gives_the_token_that_the_patch_gave() -> None:
    kernel, patch = torch.randn(5, 3, 8, 8), torch.randn(1, 3, 8, 8)
    larger = F.interpolate(patch, size=(16, 16), mode="bicubic", antialias=True)
    token = torch.einsum("dcpq,bcpq->bd", kernel, patch)
    assert torch.allclose(torch.einsum("dcpq,bcpq->bd", resample_patches(kernel, (16, 16)), larger), token, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_channels_are_summed_or_repeated_as_timm_does(channels: int) -> None:
    kernel = torch.randn(5, 3, 4, 4)
    assert torch.allclose(change_channels(kernel, channels), adapt_input_conv(channels, kernel), atol=1e-6)


def test_one_channel_becomes_several_that_add_up_to_it() -> None:
    kernel = torch.randn(5, 1, 4, 4)
    assert torch.allclose(change_channels(kernel, 3).sum(dim=1, keepdim=True), kernel, atol=1e-6)


def computed(found: dict[str, Tensor], covered: int) -> Tensor:
    """What the first block reads, where the patches are zero."""
    prefix = torch.cat([found["cls_token"], found["reg_token"]], dim=1).clone()
    prefix[:, :covered] += found["pos_embed"][:, :covered]
    return torch.cat([prefix, found["pos_embed"][:, covered:]], dim=1)


@pytest.mark.parametrize("covered", [0, 1, 3])
@pytest.mark.parametrize("known", [0, 1, 3])
def test_tokens_take_up_the_positions_that_a_table_has_no_place_for(known: int, covered: int) -> None:
    before = {
        "cls_token": torch.randn(1, 1, 4),
        "reg_token": torch.randn(1, 2, 4),
        "pos_embed": torch.randn(1, known + 6, 4),
    }
    tokens = {name: before[name] for name in ("cls_token", "reg_token")}
    slots = [("cls_token", 0), ("reg_token", 0), ("reg_token", 1)]
    after = change_positions(tokens, before["pos_embed"], old=(2, 3), new=(2, 3), slots=slots, covered=covered)
    assert after["pos_embed"].shape[1] == covered + 6
    assert torch.allclose(computed(after, covered), computed(before, known))
