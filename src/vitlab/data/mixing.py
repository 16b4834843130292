"""Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019): of a batch, of pairs of its images, or of each image."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn import functional as F
from torchvision.transforms import v2

from vitlab.data.erasing import rectangles


def mix(
    images: Tensor,
    targets: Tensor,
    num_classes: int,
    *,
    mixup: float,
    cutmix: float,
    probability: float = 1.0,
    switch: float = 0.5,
    mode: Literal["batch", "pair", "elem"] = "batch",
) -> tuple[Tensor, Tensor]:
    """Mix float images [B, C, H, W] and targets int64 [B], which become soft, float [B, classes].

    `mixup` and `cutmix` are alphas, 0 is off; `switch` is CutMix's probability if both are on. `batch`: neighbors, with
    one draw, by torchvision's transforms. As in timm, `pair`: images i and B - 1 - i with each other, with one draw per
    pair; `elem`: image i with image B - 1 - i, with one draw per image.
    """
    if mode == "batch":
        if probability < 1 and torch.rand(()) >= probability:
            return images, F.one_hot(targets, num_classes).float()
        kinds = [(kind, alpha) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha > 0]
        kind, alpha = kinds[0] if len(kinds) == 1 or torch.rand(()) < 1 - switch else kinds[1]
        mixed: tuple[Tensor, Tensor] = build_mixer(kind, alpha, num_classes)(images, targets)
        return mixed
    batch, _, height, width = images.shape
    switch = switch if mixup and cutmix else float(cutmix > 0)
    draws = batch if mode == "elem" else (batch + 1) // 2
    share, cut, box = draw_mixes(draws, (height, width), mixup, cutmix, probability, switch)
    if mode == "pair":
        share, cut, box = (torch.cat([part, part.flip(-1)[..., batch % 2 :]], dim=-1) for part in (share, cut, box))
    return apply_mixes(images, targets, num_classes, share, cut, box)


@lru_cache
def build_mixer(kind: type[v2.MixUp | v2.CutMix], alpha: float, num_classes: int) -> v2.Transform:
    """A transform that is built once, which takes longer than mixing small images."""
    return kind(alpha=alpha, num_classes=num_classes)


def draw_mixes(
    count: int, size: tuple[int, int], mixup: float, cutmix: float, probability: float, switch: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The image's own share [count], whether to cut [count], and boxes [4, count] (top, bottom, left, right)."""
    cut = torch.rand(count) < switch
    cut_share, mix_share = (Beta(alpha or 1.0, alpha or 1.0).sample((count,)) for alpha in (cutmix, mixup))
    share = torch.where(torch.rand(count) < probability, torch.where(cut, cut_share, mix_share), 1.0)
    sides = []
    for side in size:
        length = (side * (1 - share).sqrt()).int() * cut
        center = torch.randint(side, (count,))
        sides += [(center - length // 2).clamp(min=0), (center + (length + 1) // 2).clamp(max=side)]
    top, bottom, left, right = sides
    area = (bottom - top) * (right - left) / (size[0] * size[1])
    return torch.where(cut, 1 - area, share), cut, torch.stack(sides)


def apply_mixes(
    images: Tensor, targets: Tensor, num_classes: int, share: Tensor, cut: Tensor, box: Tensor
) -> tuple[Tensor, Tensor]:
    """Mix image i with image B - 1 - i by the draws of `draw_mixes`, one per image."""
    other, hard = images.flip(0), F.one_hot(targets, num_classes).float()
    blend = torch.where(cut, 1.0, share).to(images)[:, None, None, None]
    mixed = torch.where(rectangles(images, *box), other, torch.lerp(other, images, blend))
    return mixed, torch.lerp(hard.flip(0), hard, share.to(hard)[:, None])
