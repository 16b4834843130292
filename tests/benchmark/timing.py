"""Time contenders in one process and in turns, so that a disturbance of the machine affects all of them.

    contenders -> warm-up, number of calls per measurement -> rounds, each with one turn per contender
               -> seconds per call in every round -> medians and their ratios

Each round has a random, reproducible order.
"""

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import cast

import torch

CPU = torch.device("cpu")


def turns(count: int, number: int) -> list[int]:
    """The order of `count` contenders in round `number`."""
    return random.Random(number).sample(range(count), count)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A function to time, which processes `items`, such as images.

    figures     other numbers: bytes, FLOPs
    peer        False for a reference, such as the machine's limit
    self_timed  `run` returns its seconds; it is not warmed up or repeated
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
        return self.items / self.median

    @property
    def spread(self) -> float:
        """The interquartile range relative to the median; smaller differences are noise."""
        if len(self.seconds) < 2:
            return 0.0
        first, _, third = quantiles(self.seconds, n=4, method="inclusive")
        return (third - first) / self.median

    def ratio(self, other: "Measurement") -> float:
        """Items per second relative to `other`."""
        return self.rate / other.rate


class Clock:
    """rounds   measurements of each contender
    seconds  minimum duration of a measurement: short calls are repeated
    device   of the contenders
    """

    def __init__(self, *, rounds: int, seconds: float, device: torch.device = CPU) -> None:
        self.rounds, self.seconds, self.device = rounds, seconds, device

    def measure(self, contenders: Sequence[Contender]) -> list[Measurement]:
        calls = [self.calls(contender) for contender in contenders]
        seconds: list[list[float]] = [[] for _ in contenders]
        enabled = gc.isenabled()
        gc.disable()
        try:
            for number in range(self.rounds):
                gc.collect()
                for index in turns(len(contenders), number):
                    seconds[index].append(self.time(contenders[index], calls[index]))
        finally:
            if enabled:
                gc.enable()
        return [
            Measurement(name=c.name, seconds=tuple(times), items=c.items, peer=c.peer, figures=c.figures)
            for c, times in zip(contenders, seconds, strict=True)
        ]

    def calls(self, contender: Contender) -> int:
        """Warm up, and return how many calls last `seconds`."""
        if contender.self_timed:
            return 1
        contender.run()
        synchronize(self.device)
        once = self.time(contender, 1)
        return max(1, round(self.seconds / once)) if once > 0 else 1

    def time(self, contender: Contender, calls: int) -> float:
        """Seconds per call."""
        if contender.self_timed:
            return cast(float, contender.run())
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(calls):
            contender.run()
        synchronize(self.device)
        return (time.perf_counter() - start) / calls


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
