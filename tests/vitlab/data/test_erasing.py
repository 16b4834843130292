"""Random Erasing: rectangles of the paper's size, filled as asked for, with timm's distribution."""

import random
from typing import Literal

import pytest
import torch
from scipy.stats import kstest
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from distributions import counts_differ
from vitlab.data.erasing import erase


def test_erasing_takes_rectangles_of_the_papers_size() -> None:
    torch.manual_seed(0)
    batch = torch.ones(2000, 3, 30, 40)
    erased = erase(batch, 0.25)
    holes = (erased == 0).all(1)
    touched = holes.flatten(1).any(1)
    assert 430 < int(touched.sum()) < 570
    assert len({tuple(hole) for hole in holes[touched][:100].flatten(1).tolist()}) > 90
    for hole in holes[touched]:
        rows, cols = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        area = (rows[-1] - rows[0] + 1) * (cols[-1] - cols[0] + 1)
        assert int(hole.sum()) == int(area), "a hole is a full rectangle"
        assert 0.01 < area / 1200 < 0.36
    assert torch.equal(erase(batch, 0.0), batch)
    assert (erase(batch, 1.0) == 0).flatten(1).any(1).all()
    assert (batch == 1).all(), "the batch itself stays as it was"


@pytest.mark.parametrize(("mode", "theirs"), [("channel", "rand"), ("pixel", "pixel")])
def test_noise_is_erased_by_timm(mode: Literal["channel", "pixel"], theirs: str) -> None:
    batch, state = torch.ones(64, 3, 24, 12), random.getstate()
    torch.manual_seed(5)
    ours = erase(batch, 0.25, (0.02, 0.4), mode)
    assert random.getstate() == state
    torch.manual_seed(5)
    random.seed(int(torch.randint(2**32, ())))
    erasing = RandomErasing(0.25, 0.02, 0.4, mode=theirs, device="cpu")  # type: ignore[no-untyped-call]
    assert torch.equal(ours, erasing(batch.clone()))
    random.setstate(state)
    assert 4 < int((ours != 1).flatten(1).any(1).sum()) < 30


def erased_boxes(erased: Tensor) -> Tensor:
    """Top, height, left and width of each image's erased pixels, [n, 4], of images of ones."""
    holes = (erased != 1).any(1)
    holes = holes[holes.flatten(1).any(1)]
    rows, cols = holes.any(2).int(), holes.any(1).int()
    return torch.stack([rows.argmax(1), rows.sum(1), cols.argmax(1), cols.sum(1)], dim=1)


def test_of_a_square_the_boxes_have_timms_distribution_up_to_clipping() -> None:
    torch.manual_seed(0)
    noisy = erased_boxes(erase(torch.ones(16000, 3, 24, 24), 0.25, (0.02, 0.33), "pixel"))
    const = erased_boxes(erase(torch.ones(16000, 3, 24, 24), 0.25))
    larger = erased_boxes(erase(torch.ones(16000, 3, 24, 24), 0.25, (0.02, 0.4)))
    is_clipped = (const == 24).any(1)  # timm draws these again
    assert is_clipped.float().mean() < 0.01
    const = const[~is_clipped]
    assert not any(counts_differ(one.tolist(), other.tolist()) for one, other in zip(noisy.T, const.T, strict=True))
    assert counts_differ(noisy[:, 1].tolist(), larger[:, 1].tolist()), "another area is seen"


def test_erased_pixels_are_zeros_or_normal_noise_per_channel_or_pixel() -> None:
    batch = torch.full((400, 3, 20, 20), 9.0)
    for mode in ("const", "channel", "pixel"):
        torch.manual_seed(0)
        erased = erase(batch, 1.0, (0.1, 0.2), mode)
        assert (batch == 9).all(), "the batch itself stays as it was"
        values = [[channel[channel != 9] for channel in image] for image in erased]
        if mode == "const":
            assert all((channel == 0).all() for image in values for channel in image)
            continue
        assert all((channel == channel[0]).all() == (mode == "channel") for image in values for channel in image)
        firsts = [float(channel[0]) for image in values for channel in image]
        assert kstest(firsts, "norm").pvalue > 1e-4
        assert len(set(firsts)) == 1200
        inside = torch.cat([image[0] for image in values])
        assert 0.1 < len(inside) / (400 * 400) < 0.2


def test_erased_rectangles_are_anywhere_within_the_image() -> None:
    torch.manual_seed(0)
    holes = erase(torch.ones(4000, 1, 12, 9), 1.0)[:, 0] == 0
    for lines in (holes.any(2), holes.any(1)):  # rows, columns
        sides, size = lines.sum(1), lines.shape[1]
        first, last = lines.int().argmax(1), size - 1 - lines.flip(1).int().argmax(1)
        assert torch.equal(last - first + 1, sides)
        for side in range(2, 6):
            places = first[sides == side].bincount(minlength=size)
            expected = int((sides == side).sum()) / (size - side + 1)
            assert places[: size - side + 1].min() > 0.6 * expected, "each place is as likely"
            assert places[: size - side + 1].max() < 1.5 * expected
