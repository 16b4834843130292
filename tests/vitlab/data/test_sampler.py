"""Which samples form which batch."""

import itertools
import subprocess
import sys

import pytest

from vitlab.data.sampler import BatchPlan, EpochBatches, EvalBatches, cut, stable_seed


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


def test_a_resumed_epoch_goes_on_with_the_next_step() -> None:
    position = (3, 0)
    loader = batches(50, 8, accumulate=2, position=lambda: position)
    whole = list(loader)
    for done in range(8):
        position = (3, done)
        assert list(loader) == [plan for plan in whole if plan.step >= done]
        assert len(loader) == len(whole)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"samples": 9, "batch_size": 3, "world_size": 2, "accumulate": 2}, "batch_size=3.*accumulate"),
        ({"samples": 9, "batch_size": 10, "drop_last": True}, "batch_size=10 exceeds the 9 training samples"),
        ({"samples": 3, "batch_size": 4, "world_size": 4}, "batch_size=4 cuts 3.*trainer.devices=4"),
        ({"samples": 0, "batch_size": 4}, "no training samples"),
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
            assert len(plans) == len(loader)
            assert [i for plan in plans for i in plan.indices] == list(range(rank, samples, world))
            assert all(0 < len(plan.indices) <= max(1, batch_size // world) for plan in plans)
        if samples // world >= len(loaders[0]):  # the smallest share can fill as many batches
            assert len({len(loader) for loader in loaders}) == 1


def test_cut_is_an_even_partition() -> None:
    assert [len(part) for part in cut(7, 3)] == [3, 2, 2]
    assert [i for part in cut(7, 3) for i in part] == list(range(7))


def test_the_seed_is_the_same_in_every_process() -> None:
    code = "from vitlab.data.sampler import stable_seed; print(stable_seed(1, 2, 3))"
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
    )
    assert int(there.stdout) == stable_seed(1, 2, 3)
    keys = itertools.product(range(8), repeat=3)
    seeds = [stable_seed(*key) for key in keys]
    assert len(set(seeds)) == 512
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stable_seed(12, 3) != stable_seed(1, 23)
