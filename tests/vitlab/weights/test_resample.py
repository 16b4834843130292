"""Position tables, channels and prefixes are adapted so that the network computes the same."""

import pytest
import torch
from timm.models._manipulate import adapt_input_conv
from torch import Tensor

from vitlab.weights.resample import change_channels, change_positions


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_positions_of_a_plane_stay_a_plane() -> None:
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    table = torch.stack([rows, columns], dim=-1).reshape(1, 256, 2)
    changed = change_positions({}, table, old=(16, 16), new=(32, 48), slots=[], covered=0)
    finer = changed["pos_embed"].reshape(32, 48, 2)
    middle = finer[8:-8, 8:-8]
    assert torch.allclose(middle[:, 0, 0].diff().diff(), torch.zeros(14), atol=1e-5)
    assert middle[0, -1, 1] > middle[0, 0, 1]


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
