"""Mixup and CutMix: each equals timm's under the same draws, and the draws have timm's distribution."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from torch import Tensor

from distributions import counts_differ, differ
from vitlab.data.augment import Augment, Prepare
from vitlab.data.mixing import apply_mixes, draw_mixes, mix

SIZE = (14, 10)


class TimmMixup(Mixup):
    """timm's class with given draws per image."""

    draws: tuple[np.ndarray, np.ndarray]

    def _params_per_elem(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        share, cut = self.draws
        assert len(share) == batch_size
        return share.copy(), cut


def timm_draws(mixer: Mixup, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shares, kinds and boxes as timm's `_mix_elem` draws them."""
    share, cut = mixer._params_per_elem(count)  # type: ignore[no-untyped-call]
    box = np.zeros((4, count), dtype=np.int64)
    for i in np.flatnonzero(cut & (share != 1)):
        box[:, i], share[i] = cutmix_bbox_and_lam((3, *SIZE), share[i])  # type: ignore[no-untyped-call]
    return torch.tensor(share), torch.tensor(cut), torch.tensor(box)


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_images_and_targets_are_mixed_as_timm_mixes_them(mode: str) -> None:
    torch.manual_seed(0)
    images, targets = torch.randn(12, 3, *SIZE), torch.arange(12) % 5
    settings: dict[str, Any] = {"num_classes": 5, "label_smoothing": 0.0, "mode": mode, "prob": 0.8}
    theirs = TimmMixup(0.8, 1.0, **settings)  # type: ignore[no-untyped-call]
    count = 6 if mode == "pair" else 12
    np.random.seed(1)  # noqa: NPY002 what timm draws from
    theirs.draws = Mixup._params_per_elem(theirs, count)  # type: ignore[no-untyped-call]
    state = np.random.get_state()  # noqa: NPY002
    share, cut, box = timm_draws(theirs, count)
    assert cut.any()
    assert not cut.all()
    assert (share == 1).any()
    np.random.set_state(state)  # noqa: NPY002
    expected, soft = theirs(images.clone(), targets)
    if mode == "pair":
        share, cut, box = (torch.cat([part, part.flip(-1)], dim=-1) for part in (share, cut, box))
    mixed, mixed_targets = apply_mixes(images, targets, 5, share, cut, box)
    assert torch.allclose(mixed, expected, atol=1e-6)
    assert torch.allclose(mixed_targets, soft, atol=1e-6)


@pytest.mark.parametrize(("mixup", "cutmix", "switch"), [(0.8, 1.0, 0.3), (0.2, 0.0, 0.0), (0.0, 0.5, 1.0)])
def test_draws_have_timms_distribution(mixup: float, cutmix: float, switch: float) -> None:
    def kinds(share: Tensor, cut: Tensor) -> list[tuple[bool, bool]]:
        return list(zip(cut.tolist(), (share == 1).tolist(), strict=True))

    def sizes(box: Tensor) -> list[list[int]]:
        return box[:, (box[1] > box[0]) & (box[3] > box[2])].tolist()

    count = 5000
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 what timm draws from
    share_, cut_, box_ = timm_draws(Mixup(mixup, cutmix, prob=0.7, switch_prob=0.3), count)  # type: ignore[no-untyped-call]
    share, cut, box = draw_mixes(count, SIZE, mixup, cutmix, 0.7, switch)
    assert not counts_differ(kinds(share, cut), kinds(share_, cut_))
    assert not differ(share, share_)
    assert not any(counts_differ(ours, theirs) for ours, theirs in zip(sizes(box), sizes(box_), strict=True))
    other, cut, _ = draw_mixes(count, SIZE, mixup, cutmix, 0.8, switch)
    assert counts_differ(kinds(other, cut), kinds(share_, cut_)), "another probability is seen"
    assert differ(draw_mixes(count, SIZE, mixup * 2, cutmix * 2, 0.7, switch)[0], share_), "other alphas are seen"


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_pairs_share_their_draw_and_images_have_their_own(batch: int, mode: Literal["pair", "elem"]) -> None:
    torch.manual_seed(0)
    images = torch.arange(float(batch)).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    mixed, targets = mix(images, torch.arange(batch), batch, mixup=1.0, cutmix=0.0, mode=mode)
    own = targets.diagonal()
    assert torch.allclose(targets.sum(1), torch.ones(batch))
    assert torch.allclose(
        mixed, (targets @ torch.arange(float(batch)))[:, None, None, None].expand_as(mixed), atol=1e-5
    )
    assert torch.allclose(own, own.flip(0)) == (mode == "pair" or batch == 1)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_probability_and_switch_are_those_of_each_draw(mode: Literal["batch", "pair", "elem"]) -> None:
    torch.manual_seed(0)
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(-1, 1, 32, 32)
    kinds = []
    for _ in range(600):
        settings: dict[str, Any] = {"probability": 0.6, "switch": 0.25, "mode": mode}
        mixed, targets = mix(images, torch.tensor([0, 1]), 2, mixup=1.0, cutmix=1.0, **settings)
        assert targets.is_floating_point()
        assert torch.allclose(mixed.mean((1, 2, 3)), targets[:, 1], atol=1e-5)
        constant = bool((mixed[0] == mixed[0, 0, 0, 0]).all())
        kinds.append("none" if float(mixed[0, 0, 0, 0]) in (0, 1) and constant else "mixup" if constant else "cutmix")
    # the standard deviation of each share is 0.02; CutMix's box is empty or complete in a few percent
    assert kinds.count("none") / 600 == pytest.approx(0.41, abs=0.07)
    assert kinds.count("mixup") / 600 == pytest.approx(0.45, abs=0.07)
    assert kinds.count("cutmix") / 600 == pytest.approx(0.14, abs=0.05)


def test_mixing_ends_after_its_epochs() -> None:
    augment, prepare = Augment(mixup=1.0, mix_off_epoch=2), Prepare(image_size=(4, 4), mean=(0.5,), std=(0.5,))
    images, targets = torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.arange(4)
    for epoch in range(4):
        _, mixed = augment(images, targets, prepare=prepare, num_classes=4, epoch=epoch)
        assert (mixed.ndim == 2) == (epoch < 2)
