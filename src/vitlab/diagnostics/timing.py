"""Time calls fairly: in one process and in turns, so that a disturbance of the machine hits all contenders alike.

    contenders -> warm up, count the calls that last long enough -> rounds, each with one turn per contender
               -> seconds per call in every round -> medians and their ratios

Each round has an order of its own, random but reproducible: no contender always runs after the same neighbor.
"""

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import cast

import torch

CPU = torch.device("cpu")
DEVICE_MS = "device ms"  # figure: how long a call keeps the GPU busy
CYCLES_PER_SECOND = 4e9  # of a GPU's clock: more than any has
MAX_LAUNCH_SECONDS = 0.25


def turns(count: int, number: int) -> list[int]:
    """The order of `count` contenders in round `number`."""
    return random.Random(number).sample(range(count), count)


def between_quartiles(values: Sequence[float]) -> float:
    """The interquartile range; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    first, _, third = quantiles(values, n=4, method="inclusive")
    return third - first


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to time: a call of `run` handles `items` (images, mostly).

    figures     numbers that are not times: bytes, FLOPs
    peer        False for a reference, such as the machine's limit
    self_timed  a call returns its own seconds; it is neither warmed up nor repeated
    """

    name: str
    run: Callable[[], object]
    items: float = 1.0
    peer: bool = True
    figures: Mapping[str, float] = field(default_factory=dict)
    self_timed: bool = False


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Seconds per call, one number per round."""

    name: str
    seconds: tuple[float, ...]
    items: float = 1.0
    peer: bool = True
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Seconds per call."""
        return median(self.seconds)

    @property
    def rate(self) -> float:
        """Items per second."""
        return self.items / self.median

    @property
    def spread(self) -> float:
        """The interquartile range relative to the median: differences below it mean nothing."""
        return between_quartiles(self.seconds) / self.median

    def ratio(self, other: "Measurement") -> float:
        """How many times as fast as `other`, in items per second."""
        return self.rate / other.rate


class Clock:
    """rounds   measurements of each contender
    seconds  minimum duration of a measurement: short calls are repeated
    device   where the contenders compute; on a GPU, each round also measures `gpu_milliseconds`
    """

    def __init__(self, *, rounds: int, seconds: float, device: torch.device = CPU) -> None:
        self.rounds, self.seconds, self.device = rounds, seconds, device

    def measure(self, contenders: Sequence[Contender]) -> list[Measurement]:
        calls = [self.calls(contender) for contender in contenders]
        seconds: list[list[float]] = [[] for _ in contenders]
        busy: list[list[float]] = [[] for _ in contenders]
        with no_collection():
            for number in range(self.rounds):
                gc.collect()
                for index in turns(len(contenders), number):
                    contender = contenders[index]
                    seconds[index].append(self.time(contender, calls[index]))
                    if self.device.type == "cuda" and not contender.self_timed:
                        busy[index].append(gpu_milliseconds(contender.run, seconds[index][-1]))
        return [
            Measurement(
                name=contender.name,
                seconds=tuple(times),
                items=contender.items,
                peer=contender.peer,
                figures={**contender.figures, DEVICE_MS: median(device)} if device else contender.figures,
            )
            for contender, times, device in zip(contenders, seconds, busy, strict=True)
        ]

    def calls(self, contender: Contender) -> int:
        """Warm up, and return how many calls last `seconds`."""
        if contender.self_timed:
            return 1
        contender.run()
        self.synchronize()
        once = self.time(contender, 1)
        return max(1, round(self.seconds / once)) if once > 0 else 1

    def time(self, contender: Contender, calls: int) -> float:
        """Seconds per call."""
        if contender.self_timed:
            return cast(float, contender.run())
        self.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            contender.run()
        self.synchronize()
        return (time.perf_counter() - start) / calls

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def gpu_milliseconds(run: Callable[[], object], seconds: float) -> float:
    """How long a call keeps the GPU busy. `seconds`: what the call takes, including the launch of its kernels.

    The GPU sleeps until all kernels are launched; otherwise the events would count its waiting for Python. A call that
    synchronizes itself, or launches more than the GPU's queue holds, is still measured too long.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(round(min(seconds, MAX_LAUNCH_SECONDS) * CYCLES_PER_SECOND))  # type: ignore[no-untyped-call]
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


@contextmanager
def no_collection() -> Iterator[None]:
    """Pause Python's garbage collector."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
