"""Hold out a part of a split for validation or test."""

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitlab.data.rows import Rows
from vitlab.data.source import Split

log = logging.getLogger(__name__)

DRAWS = 20


def hold_out(split: Split, share: float, *, seed: int, knob: str) -> tuple[Split, Split]:
    """Split into (kept, held out), with about `share` of the samples held out, stratified by class.

    Many shards are split by shard, so that either part can be read without the other, unless a class would then be on
    one side only. A `ValueError` names the setting `knob`.
    """
    if isinstance(split.files, Rows) and split.files.split_by_block and split.blocks is not None and 0 < share < 1:
        if (mask := block_mask(split.labels, split.blocks, share, seed)) is not None:
            return split.subset((~mask).nonzero().flatten()), split.subset(mask.nonzero().flatten())
        reason = "no draw of complete ones has every class on both sides"
        log.warning("%s=%g is held out of all shards, so both parts read them: %s", knob, share, reason)
    kept, out = stratified_split(split.labels, share, seed=seed, knob=knob)
    return split.subset(kept), split.subset(out)


def stratified_split(labels: Tensor, held_out: int | float, *, seed: int, knob: str) -> tuple[Tensor, Tensor]:
    """Sorted indices (kept, held out), stratified by class; `held_out` is a number or a fraction.

    The draw is that of scikit-learn's `train_test_split`. It needs a byte a sample next to the indices it returns, and
    the indices of an eighth of them, or of the largest class.
    """
    if isinstance(held_out, float) and not 0.0 < held_out < 1.0:
        raise ValueError(f"{knob}={held_out:g} must be between 0 and 1")
    numbers, counts = labels.numpy(), np.bincount(labels.numpy())
    n_out = math.ceil(held_out * len(numbers)) if isinstance(held_out, float) else held_out
    smallest, classes = counts[counts > 0].min(initial=len(numbers)), np.count_nonzero(counts)
    if smallest < 2 or not classes <= n_out <= len(numbers) - classes:
        samples = f"{len(numbers)} samples of {classes} classes, the smallest of {smallest}"
        raise ValueError(
            f"{knob}={held_out:g} can't split {samples}, with every class on both sides: {n_out} are held out; "
            f"change {knob} or give every class more images"
        )
    draw, present = np.random.RandomState(seed), np.flatnonzero(counts)
    kept = class_shares(counts[present], len(numbers) - n_out, draw)
    class_shares(counts[present] - kept, n_out, draw)  # to take as many numbers from the generator
    mask = np.zeros(len(numbers), bool)
    blocks = np.cumsum(counts[present]) * 8 // len(numbers)  # classes that are sorted at once
    for block in np.unique(blocks):
        inside = present[blocks == block]
        indices = np.flatnonzero((numbers >= inside[0]) & (numbers <= inside[-1]))
        if len(inside) > 1:
            indices = indices[np.argsort(numbers[indices], kind="stable")]
        ends = np.cumsum(counts[inside])[:-1]
        for own, keep in zip(np.split(indices, ends), kept[blocks == block], strict=True):
            mask[own[draw.permutation(len(own))[keep:]]] = True
    out = torch.from_numpy(np.flatnonzero(mask))
    return torch.from_numpy(np.flatnonzero(np.logical_not(mask, out=mask))), out


def class_shares(counts: "np.ndarray[Any, Any]", number: int, draw: np.random.RandomState) -> "np.ndarray[Any, Any]":
    """`number` samples as shares of classes, int64 [classes]; the largest remainders get one more, drawn if equal."""
    exact = counts / counts.sum() * number
    shares = np.floor(exact)
    rest, missing = exact - shares, int(number - shares.sum())
    for value in np.unique(rest)[::-1]:
        if missing <= 0:
            break
        (equal,) = np.nonzero(rest == value)
        shares[draw.choice(equal, size=min(len(equal), missing), replace=False)] += 1
        missing -= min(len(equal), missing)
    return np.asarray(shares, int)


def block_mask(labels: Tensor, blocks: Tensor, share: float, seed: int) -> Tensor | None:
    """Mask of held-out samples in complete blocks, bool [N]; None if no draw has every class on both sides."""
    sizes, classes = torch.bincount(blocks), torch.bincount(labels) > 0
    for draw in range(DRAWS):
        drawn = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed + draw))
        up_to = sizes[drawn].cumsum(0) - sizes[drawn] / 2 <= share * len(labels)
        mask = torch.zeros(len(sizes), dtype=torch.bool).index_fill(0, drawn[up_to], True)[blocks]
        sides = [torch.bincount(labels[side], minlength=len(classes)) > 0 for side in (mask, ~mask)]
        if all(torch.equal(side, classes) for side in sides):
            return mask
    return None
