"""Hold out a part of a split for validation or test."""

import logging

import numpy as np
import torch
from torch import Tensor

from vitlab.data.rows import Rows
from vitlab.data.source import Split

log = logging.getLogger(__name__)

DRAWS = 20


def hold_out(split: Split, share: float, *, seed: int, knob: str) -> tuple[Split, Split]:
    """Split into (kept, held out), with about `share` of the samples held out, stratified by class.

    Streamed images are split by block, so that either part can be read without the other, unless a class would then be
    on one side only. A `ValueError` names the setting `knob`.
    """
    if isinstance(split.files, Rows) and split.files.split_by_block and split.blocks is not None and 0 < share < 1:
        if (mask := block_mask(split.labels, split.blocks, share, seed)) is not None:
            return split.subset((~mask).nonzero().flatten()), split.subset(mask.nonzero().flatten())
        reason = "no draw of complete ones has every class on both sides"
        log.warning("%s=%g is held out of all row groups or shards, so both parts read them: %s", knob, share, reason)
    kept, out = stratified_split(split.labels, share, seed=seed, knob=knob)
    return split.subset(kept), split.subset(out)


def stratified_split(labels: Tensor, held_out: int | float, *, seed: int, knob: str) -> tuple[Tensor, Tensor]:
    """Sorted indices (kept, held out), stratified by class; `held_out` is a number or a fraction."""
    from sklearn.model_selection import train_test_split

    if isinstance(held_out, float) and not 0.0 < held_out < 1.0:
        raise ValueError(f"{knob}={held_out:g} must be between 0 and 1")
    try:
        every = np.arange(len(labels))
        kept, out = train_test_split(every, test_size=held_out, stratify=labels.numpy(), random_state=seed)
    except ValueError as error:
        counts = [count for count in torch.bincount(labels).tolist() if count]
        samples = f"{len(labels)} samples of {len(counts)} classes, the smallest of {min(counts)}"
        remedy = f"change {knob} or give every class more images"
        raise ValueError(
            f"{knob}={held_out:g} can't split {samples}, with every class on both sides: {error}; {remedy}"
        ) from error
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(out))


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
