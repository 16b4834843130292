"""Which samples form which batch."""

import itertools
import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor

from vitlab.data.sampler import (
    BatchPlan,
    EpochBatches,
    EvalBatches,
    Pieces,
    cut,
    pieces,
    reseed,
    seed_python_and_numpy,
    shuffled_blocks,
    stable_seed,
)


def batches(samples: int, batch_size: int, **others: object) -> EpochBatches:
    return EpochBatches(
        **{"samples": samples, "batch_size": batch_size, "seed": 0, "position": lambda: (0, 0), **others}  # type: ignore[arg-type]
    )


def plans_of_all_ranks(
    samples: int, batch_size: int, world: int, accumulate: int, **others: object
) -> list[list[BatchPlan]]:
    loaders = [
        batches(samples, batch_size, rank=rank, world_size=world, accumulate=accumulate, **others)
        for rank in range(world)
    ]
    assert len({len(loader) for loader in loaders}) == 1
    plans = [list(loader) for loader in loaders]
    assert all(len(of_rank) == len(loaders[0]) for of_rank in plans)
    return plans


SMALL = [
    (samples, batch_size, world, accumulate)
    for samples, batch_size, world, accumulate in itertools.product(range(1, 20), range(1, 9), (1, 2, 3), (1, 2))
    if batch_size >= world * accumulate
    and samples // -(-samples // batch_size) >= world * accumulate  # the smallest step feeds every part
]


def test_every_sample_is_seen_exactly_once_an_epoch_in_steps_that_differ_by_one_image() -> None:
    for samples, batch_size, world, accumulate in SMALL:
        plans = plans_of_all_ranks(samples, batch_size, world, accumulate)
        everything = [index for of_rank in plans for plan in of_rank for index in plan.indices]
        assert sorted(everything) == list(range(samples))
        sizes: dict[int, int] = {}
        for plan in itertools.chain(*plans):
            assert plan.indices
            sizes[plan.step] = sizes.get(plan.step, 0) + len(plan.indices)
        assert all(sizes[plan.step] == plan.count for plan in itertools.chain(*plans))
        assert len(sizes) == -(-samples // batch_size)
        assert max(sizes.values()) <= batch_size
        assert max(sizes.values()) - min(sizes.values()) <= 1


def test_a_step_holds_the_same_images_on_any_number_of_devices_and_accumulated_batches() -> None:
    for samples, batch_size, world, accumulate in SMALL:
        one = [plan.indices for plan in batches(samples, batch_size)]
        plans = list(itertools.chain(*plans_of_all_ranks(samples, batch_size, world, accumulate)))
        for step, indices in enumerate(one):
            parts = sorted((plan for plan in plans if plan.step == step), key=lambda plan: plan.micro)
            assert [index for part in parts for index in part.indices] == indices
            assert [part.micro for part in parts] == list(range(world * accumulate))
            sizes = [len(part.indices) for part in parts]
            assert max(sizes) - min(sizes) <= 1


def test_drop_last_gives_full_steps_only() -> None:
    for samples, batch_size, world, accumulate in SMALL:
        if batch_size > samples:
            continue
        plans = list(itertools.chain(*plans_of_all_ranks(samples, batch_size, world, accumulate, drop_last=True)))
        indices = [index for plan in plans for index in plan.indices]
        assert len(indices) == len(set(indices)) == samples // batch_size * batch_size
        assert {plan.count for plan in plans} == {batch_size}


def test_the_order_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        loader = batches(40, 8, seed=seed, position=lambda: (epoch, 0))
        return [index for plan in loader for index in plan.indices]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_a_resumed_epoch_continues_with_the_next_step() -> None:
    position = (3, 0)
    loader = batches(50, 8, accumulate=2, position=lambda: position)
    complete = list(loader)
    for done in range(8):
        position = (3, done)
        assert list(loader) == [plan for plan in complete if plan.step >= done]
        assert len(loader) == len(complete)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(("samples", "batch_size"), [(1100, 256), (1029, 512), (2000, 256)])
def test_repeated_augmentation_has_the_samples_of_timms_sampler(samples: int, batch_size: int, world: int) -> None:
    """Which images are in each step, and how often; timm's number of steps too, with drop_last."""
    plans = list(itertools.chain(*plans_of_all_ranks(samples, batch_size, world, 1, repeats=3, drop_last=True)))
    theirs = []
    for rank in range(world):
        sampler = RepeatAugSampler(range(samples), world, rank, num_repeats=3)  # type: ignore[no-untyped-call]
        sampler.set_epoch(stable_seed(0, 0))  # type: ignore[no-untyped-call]  # the seed of our order
        theirs.append(list(sampler))
    part = batch_size // world
    assert len(theirs[0]) // part == len({plan.step for plan in plans})
    for step in range(len(theirs[0]) // part):
        expected = Counter(index for of_rank in theirs for index in of_rank[step * part : (step + 1) * part])
        assert Counter(index for plan in plans if plan.step == step for index in plan.indices) == expected


@pytest.mark.parametrize("settings", [{}, {"drop_last": True}, {"blocks": torch.arange(19) // 4, "buffer": 8}])
@pytest.mark.parametrize("repeats", [2, 3])
def test_repeats_are_exact_over_devices_accumulated_batches_and_resumes(settings: dict[str, Any], repeats: int) -> None:
    for samples, batch_size, world, accumulate in SMALL:
        blocks = {"blocks": settings["blocks"][:samples]} if "blocks" in settings else {}
        if batch_size > samples:
            continue
        others: dict[str, Any] = {**settings, **blocks, "repeats": repeats}
        one = list(batches(samples, batch_size, **others))
        drawn = Counter(
            (index, repeat) for plan in one for index, repeat in zip(plan.indices, plan.repeats, strict=True)
        )
        assert set(drawn.values()) == {1}, "each repeat once, with augmentation of its own"
        assert {repeat for _, repeat in drawn} == set(range(min(repeats, len(drawn))))
        assert len(drawn) == (samples // batch_size * batch_size if "drop_last" in settings else samples)
        assert len({index for index, _ in drawn}) == -(-len(drawn) // repeats)
        plans = list(itertools.chain(*plans_of_all_ranks(samples, batch_size, world, accumulate, **others)))
        for step, plan in enumerate(one):
            parts = sorted((part for part in plans if part.step == step), key=lambda part: part.micro)
            assert [index for part in parts for index in part.indices] == plan.indices
            assert [repeat for part in parts for repeat in part.repeats] == plan.repeats
        for done in range(len(one)):
            position = (0, done)
            assert list(batches(samples, batch_size, **others, position=lambda p=position: p)) == one[done:]


def test_repeats_of_a_sample_are_apart_in_a_step_and_epochs_have_other_samples() -> None:
    plans = [list(batches(3000, 300, repeats=3, position=lambda e=epoch: (e, 0))) for epoch in range(2)]
    for plan in plans[0]:
        assert all(one != other for one, other in itertools.pairwise(plan.indices))
    seen = [{index for plan in of_epoch for index in plan.indices} for of_epoch in plans]
    assert [len(samples) for samples in seen] == [1000, 1000]
    assert len(seen[0] & seen[1]) < 500


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"samples": 9, "batch_size": 3, "world_size": 2, "accumulate": 2}, "batch_size=3.*accumulate"),
        ({"samples": 9, "batch_size": 10, "drop_last": True}, "batch_size=10 exceeds the 9 training samples"),
        ({"samples": 3, "batch_size": 4, "world_size": 4}, "batch_size=4 cuts 3.*trainer.devices=4"),
        ({"samples": 0, "batch_size": 4}, "exceeds the 0 training samples; there are none"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(arguments: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        batches(**arguments)


def test_evaluation_sees_every_sample_once_in_order_and_unpadded() -> None:
    for samples, batch_size, world in itertools.product(range(1, 25), range(1, 9), (1, 2, 3)):
        loaders = [
            EvalBatches(samples=samples, batch_size=batch_size, rank=rank, world_size=world) for rank in range(world)
        ]
        for rank, loader in enumerate(loaders):
            plans = list(loader)
            assert (
                len(plans) == len(loader) == max(1, math.ceil(math.ceil(samples / world) / max(1, batch_size // world)))
            )
            assert [i for plan in plans for i in plan.indices] == list(range(rank, samples, world))
            assert all(len(plan.indices) <= max(1, batch_size // world) for plan in plans)
        assert len({len(loader) for loader in loaders}) == 1


def test_an_epoch_that_ends_within_a_step_counts_the_images_it_has() -> None:
    plans = list(batches(samples=40, batch_size=10, accumulate=2, limit=7))
    assert [plan.count for plan in plans] == [10] * 6 + [5]
    assert sum(len(plan.indices) for plan in plans) == 35


def test_one_order_repeats_the_same_images_every_epoch() -> None:
    one, two = (
        [plan.indices for plan in batches(samples=40, batch_size=10, position=lambda e=e: (e, 0), one_order=True)]
        for e in (0, 1)
    )
    assert one == two == [plan.indices for plan in batches(samples=40, batch_size=10)]


def test_cut_is_an_even_partition() -> None:
    assert [len(part) for part in cut(7, 3)] == [3, 2, 2]
    assert [i for part in cut(7, 3) for i in part] == list(range(7))


def test_the_seed_is_the_same_in_every_process() -> None:
    assert stable_seed(1, 2, 3) == 733464669408481064
    keys = itertools.product(range(8), repeat=3)
    seeds = [stable_seed(*key) for key in keys]
    assert len(set(seeds)) == 512
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stable_seed(12, 3) != stable_seed(1, 23)


# ------------------------------------------------------------------------------------- samples that are read in blocks

BLOCKS = torch.arange(6000) // 20


def order(sizes: list[int], seed: int = 0, blocks: Tensor = BLOCKS) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = shuffled_blocks(blocks, sizes, 400, generator).tolist()
    return found


@pytest.mark.parametrize("sizes", [[6000], [60] * 100, [59, 61] * 50, [1000, 1, 4999], [1] * 6000])
def test_steps_of_any_size_have_every_sample_once(sizes: list[int]) -> None:
    assert sorted(order(sizes)) == list(range(6000))


def test_blocks_of_any_size_and_in_any_place_have_every_sample_once() -> None:
    blocks = torch.randint(0, 50, (999,), generator=torch.Generator().manual_seed(0)).sort().values
    assert sorted(order([33] * 30 + [9], blocks=blocks)) == list(range(999))
    assert sorted(order([60] * 100, blocks=3 * BLOCKS)) == list(range(6000)), "most blocks have none"


def test_it_depends_on_the_generator_alone() -> None:
    assert order([60] * 100) == order([60] * 100)
    assert order([60] * 100, seed=1) != order([60] * 100)


def test_what_steps_leave_out_is_other_in_each_epoch() -> None:
    left = [set(range(6000)) - set(order([64] * 93, seed)) for seed in range(2)]
    assert [len(rest) for rest in left] == [6000 - 64 * 93] * 2
    assert left[0] != left[1]


def test_a_step_mixes_samples_of_several_blocks() -> None:
    layout = pieces(20, 400)
    drawn = torch.tensor(order([60] * 100)).view(100, 60)
    mixed = [len(set(BLOCKS[step].tolist())) for step in drawn]
    assert min(mixed) >= layout.lanes
    assert layout.lanes > 1
    assert all(step.sort().values.ne(step).any() for step in drawn), "no step is in the files' order"


def blocks_in_use(layout: Pieces, rows: int) -> int:
    """Number of blocks of `rows` samples in use at a time."""
    return layout.lanes * layout.turns * (1 + math.ceil(layout.stretch / rows))


@pytest.mark.parametrize(
    ("rows", "buffer", "expected"),
    [(100, 10_000, (4, 8)), (100, 1_000_000, (8, 8)), (1000, 10_000, (2, 2)), (1000, 10, (1, 1)), (1, 1, (1, 1))],
)
def test_large_blocks_are_used_few_at_a_time(rows: int, buffer: int, expected: tuple[int, int]) -> None:
    layout = pieces(rows, buffer)
    assert (layout.lanes, layout.turns) == expected
    assert blocks_in_use(layout, rows) * rows <= max(2 * buffer, 2 * rows)


def reads(ranks: int, workers: int, accumulate: int) -> float:
    """How often a block is read in an epoch by processes that hold it until they have read all of it."""
    layout, wanted = pieces(20, 400), BLOCKS.bincount()
    count = 0
    for rank in range(ranks):
        held: list[dict[int, int]] = [{} for _ in range(workers)]
        plans = EpochBatches(
            samples=6000,
            batch_size=64,
            seed=0,
            rank=rank,
            world_size=ranks,
            accumulate=accumulate,
            position=lambda: (0, 0),
            blocks=BLOCKS,
            buffer=400,
        )
        for number, plan in enumerate(plans):
            mine = held[number % workers]
            for block in BLOCKS[torch.tensor(plan.indices)].tolist():
                if block not in mine:
                    count, mine[block] = count + 1, int(wanted[block])
                mine[block] -= 1
                if not mine[block]:
                    del mine[block]
                assert len(mine) <= blocks_in_use(layout, 20)
    return count / 300


@pytest.mark.parametrize(
    ("ranks", "workers", "accumulate"), [(1, 1, 1), (1, 2, 1), (1, 4, 1), (2, 1, 1), (2, 4, 1), (1, 2, 2)]
)
def test_a_block_is_read_by_one_process(ranks: int, workers: int, accumulate: int) -> None:
    """But for those that the cuts between pieces go through."""
    assert reads(ranks, workers, accumulate) < 1.2


def test_pythons_and_numpys_draws_follow_from_torchs_and_leave_no_trace() -> None:
    def draws(seed: int) -> tuple[float, float]:
        torch.manual_seed(seed)
        with seed_python_and_numpy():
            return random.random(), float(np.random.rand())  # noqa: NPY002

    before = random.getstate(), str(np.random.get_state(legacy=False))  # noqa: NPY002
    assert draws(0) == draws(0)
    assert draws(0) != draws(1)
    with pytest.raises(KeyError), seed_python_and_numpy():
        raise KeyError
    assert (random.getstate(), str(np.random.get_state(legacy=False))) == before  # noqa: NPY002


def test_reseeding_sets_torchs_default_generator() -> None:
    torch.manual_seed(2**40 + 1)
    expected = torch.rand(3)
    reseed(2**40 + 1, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)
