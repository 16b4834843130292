"""The order of samples that are read in blocks."""

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vitlab.data.blocks import Pieces, pieces, shuffled
from vitlab.data.sampler import EpochBatches

BLOCKS = torch.arange(6000) // 20


def order(sizes: list[int], seed: int = 0, layout: Pieces | None = None, blocks: Tensor = BLOCKS) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = shuffled(blocks, sizes, layout or pieces(20, 400), generator).tolist()
    return found


@pytest.mark.parametrize("sizes", [[6000], [60] * 100, [59, 61] * 50, [1000, 1, 4999], [1] * 6000])
def test_steps_of_any_size_have_every_sample_once(sizes: list[int]) -> None:
    assert sorted(order(sizes)) == list(range(6000))


def test_blocks_of_any_size_and_in_any_place_have_every_sample_once() -> None:
    blocks = torch.randint(0, 50, (999,), generator=torch.Generator().manual_seed(0)).sort().values
    assert sorted(order([33] * 30 + [9], blocks=blocks)) == list(range(999))


def test_it_depends_on_the_generator_alone() -> None:
    assert order([60] * 100) == order([60] * 100)
    assert order([60] * 100, seed=1) != order([60] * 100)


def test_what_steps_leave_out_is_other_in_each_epoch() -> None:
    left = [set(range(6000)) - set(order([64] * 93, seed)) for seed in range(2)]
    assert [len(rest) for rest in left] == [6000 - 64 * 93] * 2
    assert left[0] != left[1]


def test_a_step_mixes_samples_of_several_blocks() -> None:
    layout = pieces(20, 400)
    drawn = torch.tensor(order([60] * 100, layout=layout)).view(100, 60)
    mixed = [len(set(BLOCKS[step].tolist())) for step in drawn]
    assert min(mixed) >= layout.lanes
    assert layout.lanes > 1
    assert all(step.sort().values.ne(step).any() for step in drawn), "no step is in the files' order"


@pytest.mark.parametrize(
    ("rows", "buffer", "expected"),
    [(100, 10_000, (4, 8)), (100, 1_000_000, (8, 8)), (1000, 10_000, (2, 2)), (1000, 10, (1, 1)), (1, 1, (1, 1))],
)
def test_large_blocks_are_used_few_at_a_time(rows: int, buffer: int, expected: tuple[int, int]) -> None:
    layout = pieces(rows, buffer)
    assert (layout.lanes, layout.turns) == expected
    assert layout.in_use(rows) * rows <= max(2 * buffer, 2 * rows)


def reads(ranks: int, workers: int, accumulate: int = 1) -> tuple[float, int]:
    """How often a block is read in an epoch, and the most blocks that a process holds, as `ParquetRows` reads."""
    layout, rows, wanted = pieces(20, 400), 20, BLOCKS.bincount()
    draw: Callable[[list[int], torch.Generator], Tensor] = lambda sizes, generator: shuffled(  # noqa: E731
        BLOCKS, sizes, layout, generator
    )
    count = most = 0
    for rank in range(ranks):
        held: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(workers)]
        plans = EpochBatches(
            samples=6000,
            batch_size=64,
            seed=0,
            rank=rank,
            world_size=ranks,
            accumulate=accumulate,
            position=lambda: (0, 0),
            order=draw,
        )
        for number, plan in enumerate(plans):
            mine = held[number % workers]
            for block in BLOCKS[torch.tensor(plan.indices)].tolist():
                if block not in mine:
                    count, mine[block] = count + 1, int(wanted[block])
                mine[block] -= 1
                most = max(most, len(mine))
                if not mine[block]:
                    del mine[block]
                assert len(mine) <= layout.in_use(rows) * 2
    return count / 300, most


@pytest.mark.parametrize(
    ("ranks", "workers", "accumulate"), [(1, 1, 1), (1, 2, 1), (1, 4, 1), (2, 1, 1), (2, 4, 1), (1, 2, 2)]
)
def test_a_block_is_read_by_one_process(ranks: int, workers: int, accumulate: int) -> None:
    """But for those that the cuts between pieces go through."""
    times, _ = reads(ranks, workers, accumulate)
    assert times < 1.2
