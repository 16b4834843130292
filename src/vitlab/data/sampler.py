"""Batch samplers: every sample once per epoch, or repeated, in the same steps on any number of devices.

The order of an epoch depends on (seed, epoch) alone. An epoch is cut into optimizer steps, a step into micro-batches,
one per device and accumulated batch. So two devices, or two accumulated batches on one, have the same images in each
step, and a run that is resumed within an epoch continues with the next step.
"""

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

MAX_LANES = 8  # and turns, of `Pieces`


class BatchPlan(NamedTuple):
    """One batch of one device, passed to the dataset in place of a list of indices."""

    epoch: int
    step: int  # optimizer step within the epoch
    indices: list[int]
    # images of the complete optimizer step, over all devices and accumulated batches
    count: int  # type: ignore[assignment]  # tuple has a method of this name
    micro: int = 0  # number of this part of the step, over all devices and accumulated batches
    repeats: Sequence[int] = ()  # of each index, which of its repeats it is; () if there are none


def stable_seed(*key: int) -> int:
    """A seed in [0, 2**63) that depends on the key alone, in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


def reseed(seed: int, device: torch.device) -> None:
    """Seed the CPU and one device. `torch.manual_seed` seeds all kinds of devices, which takes 1 ms."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def seed_python_and_numpy() -> Iterator[None]:
    """Seed the generators from which timm's transforms draw, by a draw of torch's; afterwards, they are as before."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    seed = int(torch.randint(2**32, ()))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def count_steps(samples: int, batch_size: int, drop_last: bool) -> int:
    return samples // batch_size if drop_last else -(-samples // batch_size)


def count_training_steps(max_steps: int, max_epochs: int | None, steps_per_epoch: int) -> int:
    """Steps of a training that ends by the Trainer's `max_steps` or `max_epochs`, whichever is first; -1: no limit."""
    return min(end for end in (max_steps, (max_epochs or -1) * steps_per_epoch) if end > 0)


def cut(samples: int, parts: int) -> list[range]:
    """`range(samples)` in `parts` ranges whose lengths differ by one at most, the longer ones first."""
    short, longer = divmod(samples, parts)
    starts = [part * short + min(part, longer) for part in range(parts + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(starts)]


class Pieces(NamedTuple):
    """The layout of an epoch that is read in blocks, as `lanes` x `turns` pieces.

    A step has samples of one turn from every lane, the next step those of the next turn. A device reads the lanes of
    its part of a step; a loading worker, which gets every n-th batch, the turns of its batches. If the number of
    devices divides `lanes` and that of workers `turns`, one process reads a block, else several, in the same order.
    """

    lanes: int
    turns: int
    stretch: int  # number of samples that are shuffled together


def pieces(rows: int, buffer: int) -> Pieces:
    """The layout for blocks of `rows` samples, with about `buffer` samples in use at a time."""
    doublings = min(2 * int(math.log2(MAX_LANES)), int(math.log2(max(1, buffer // (2 * rows)))))
    lanes, turns = 2 ** (doublings // 2), 2 ** (doublings - doublings // 2)
    return Pieces(lanes, turns, max(rows, buffer // (lanes * turns) - rows))


def shuffled_blocks(blocks: torch.Tensor, sizes: list[int], buffer: int, generator: torch.Generator) -> torch.Tensor:
    """An epoch's order in which few blocks are in use at a time, each by few processes.

    `blocks` has each sample's block, int64 [N]. Blocks are shuffled, their samples concatenated and cut into `Pieces`,
    and each piece is shuffled within stretches. The result has the samples of all steps, of the given `sizes`; if these
    sum to less than N, each epoch drops other samples.
    """
    counts = torch.bincount(blocks)
    layout = pieces(int(counts[counts > 0].median()), buffer)
    places = torch.randperm(len(counts), generator=generator)[blocks]
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


class EpochBatches(Sampler[BatchPlan]):
    """The training batches of one device.

    `batch_size` counts the images of one optimizer step, over all devices and accumulated batches. The sizes of steps
    differ by at most one image; with `drop_last` all have `batch_size` images, and each epoch drops other ones.
    With `repeats` (Hoffer et al., 2020), an epoch is as long, of the first samples of its order, each repeated. Of
    an order, a step has the samples that it has in timm's RepeatAugSampler and in DeiT, over all ranks. Within a step,
    the second repeats follow on the first ones of all samples: neighbors, which are mixed, differ. DeiT rounds an epoch
    down to a multiple of 256 images: `drop_last` gives as many steps for every `batch_size` that is a multiple of 256.
    `position` returns the epoch and its steps already done. An epoch ends after `limit` batches of a device, if given,
    perhaps within a step. With `one_order` all epochs have the order of the first. `blocks` and `buffer` are those of
    `shuffled_blocks`.
    """

    def __init__(
        self,
        *,
        samples: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        drop_last: bool = False,
        position: Callable[[], tuple[int, int]],
        limit: int | None = None,
        one_order: bool = False,
        blocks: torch.Tensor | None = None,
        buffer: int = 1000,
        repeats: int = 1,
    ) -> None:
        self.samples, self.seed, self.position = samples, seed, position
        self.limit, self.one_order = limit, one_order
        self.blocks, self.buffer, self.repeats = blocks, buffer, repeats
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.steps = count_steps(samples, batch_size, drop_last)
        if self.steps < 1:
            remedy = "without data.drop_last, it may be larger" if samples else "there are none"
            raise ValueError(f"batch_size={batch_size} exceeds the {samples} training samples; {remedy}")
        self.step_ranges = cut(self.steps * batch_size if drop_last else samples, self.steps)
        if (smallest := len(self.step_ranges[-1])) < world_size * accumulate:
            devices = f"trainer.devices={world_size} (all nodes) and trainer.accumulate_grad_batches={accumulate}"
            steps = f"cuts {samples} training samples into {self.steps} steps of {smallest}, too few for {devices}"
            raise ValueError(f"batch_size={batch_size} {steps}; lower one of these, or raise batch_size")

    def __len__(self) -> int:
        """Batches of one device per epoch."""
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[BatchPlan]:
        epoch, done = self.position()
        generator = torch.Generator().manual_seed(stable_seed(self.seed, 0 if self.one_order else epoch))
        if self.blocks is None:
            order = torch.randperm(self.samples, generator=generator)
        else:
            ends = [0, *(math.ceil(part.stop / self.repeats) for part in self.step_ranges)]  # distinct samples
            sizes = [stop - start for start, stop in itertools.pairwise(ends)]
            order = shuffled_blocks(self.blocks, sizes, self.buffer, generator)
        for step in range(done, self.steps):
            places = torch.tensor(sorted(self.step_ranges[step], key=lambda place: place % self.repeats))
            indices = order[places // self.repeats].tolist()
            repeats = (places % self.repeats).tolist() if self.repeats > 1 else ()
            micros = cut(len(indices), self.world_size * self.accumulate)
            if self.limit is not None:
                micros = micros[: max(0, self.limit - step * self.accumulate) * self.world_size]
            for micro in range(self.rank, len(micros), self.world_size):
                part = micros[micro]
                here = slice(part.start, part.stop)
                yield BatchPlan(epoch, step, indices[here], micros[-1].stop, micro, repeats[here])


def eval_share(samples: int, rank: int, world_size: int, *, in_blocks: bool) -> range:
    """The samples that a device evaluates: every `world_size`-th, or a range if they are read in blocks."""
    return cut(samples, world_size)[rank] if in_blocks else range(rank, samples, world_size)


class EvalBatches(Sampler[BatchPlan]):
    """A device's `eval_share`, in order and unpadded, in batches of at most `batch_size` // `world_size` samples.

    Every device has as many batches, since a sharded network computes them together; some may be empty.
    """

    def __init__(
        self, *, samples: int, batch_size: int, rank: int = 0, world_size: int = 1, in_blocks: bool = False
    ) -> None:
        self.indices = eval_share(samples, rank, world_size, in_blocks=in_blocks)
        largest_share = -(-samples // world_size)
        batches = -(-largest_share // max(1, batch_size // world_size))
        self.parts = cut(len(self.indices), max(1, batches))

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[BatchPlan]:
        for step, part in enumerate(self.parts):
            yield BatchPlan(0, step, list(self.indices[part.start : part.stop]), len(part))
