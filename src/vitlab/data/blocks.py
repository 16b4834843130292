"""The order of samples that can only be read in blocks: row groups of files that are streamed.

An order that any sample may come next in would read a block for each image. Here few blocks are in use at a time, and
each by few processes, and still an epoch has every sample once and depends on nothing but what its generator draws.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from vitlab.data.sampler import cut

MOST = 8  # lanes, and turns


class Pieces(NamedTuple):
    """How an epoch is laid out: `lanes` x `turns` pieces, each of which one place at a time is read of.

    Each step takes a part of every lane's piece of its turn, and the turns take turns. A device reads the lanes of its
    part of the step, a loading worker, to which every n-th batch goes, the turns of its batches: each block is read by
    one process where the devices divide `lanes` and the workers divide `turns`. With other numbers blocks are read by
    several, in the very same order.
    """

    lanes: int
    turns: int
    stretch: int  # samples among which a piece's next ones are drawn

    def in_use(self, rows: int) -> int:
        """Blocks of `rows` samples that are in use at a time."""
        return self.lanes * self.turns * (1 + math.ceil(self.stretch / rows))


def pieces(rows: int, buffer: int) -> Pieces:
    """The layout for blocks of `rows` samples where about `buffer` samples shall be in use at a time."""
    doublings = min(2 * int(math.log2(MOST)), int(math.log2(max(1, buffer // (2 * rows)))))
    lanes, turns = 2 ** (doublings // 2), 2 ** (doublings - doublings // 2)
    return Pieces(lanes, turns, max(rows, buffer // (lanes * turns) - rows))


def shuffled(blocks: Tensor, sizes: list[int], layout: Pieces, generator: torch.Generator) -> Tensor:
    """The samples of the first step, then of the second, ...: int64 [sum of `sizes`].

    Blocks are shuffled and their samples laid end to end; that row is cut into pieces, and each of these shuffled
    within stretches.

    Args:
        blocks: The number of each sample's block, int64 [N].
        sizes: Samples of each step; those beyond their sum are left out, others in each epoch.
        layout: What `pieces` says.
        generator: Decides everything.
    """
    places = torch.randperm(int(blocks.max()) + 1, generator=generator)[blocks]
    row = torch.argsort(places, stable=True)[: sum(sizes)]
    order = torch.empty_like(row)
    starts = list(itertools.accumulate(sizes, initial=0))
    begin = 0
    for turn in range(min(layout.turns, len(sizes))):
        steps = [(starts[step], cut(sizes[step], layout.lanes)) for step in range(turn, len(sizes), layout.turns)]
        for lane in range(layout.lanes):
            where = torch.cat([torch.arange(at + parts[lane].start, at + parts[lane].stop) for at, parts in steps])
            piece = row[begin : begin + len(where)]
            noise = torch.rand(len(piece), dtype=torch.float64, generator=generator)
            order[where] = piece[torch.argsort(torch.arange(len(piece)) // layout.stretch + noise)]
            begin += len(where)
    return order
