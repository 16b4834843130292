"""Times programs fairly: in one process and in turns, so that whatever disturbs the machine disturbs them all.

    contenders -> warm up, and find how many calls last long enough -> rounds, each one a turn for everybody
               -> seconds per call of every round -> medians, their ratios

Each round has an order of its own, drawn by chance but the same each time: no one always runs after the same neighbour.
"""

import gc
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Literal, cast

import torch

OURS = "vitlab"
CPU = torch.device("cpu")
DEVICE_MS = "device ms"  # a figure: what a call keeps the device busy
CYCLES = 4e9  # of a GPU in a second: more than any has
LAUNCHED = 0.25  # seconds that launching takes at most

DeviceTimer = Callable[[Callable[[], object], float], float]  # of a call, and of the seconds that it takes


def turns(count: int, number: int) -> list[int]:
    """The order of so many contenders in a round: by chance, but the same each time, so that neighbours change."""
    return random.Random(number).sample(range(count), count)


def between_quartiles(values: Sequence[float]) -> float:
    """The distance between the quartiles; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    first, _, third = quantiles(values, n=4, method="inclusive")
    return third - first


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to be timed: a call of `run` handles `items` (images, mostly).

    `figures` are of it, but no times: bytes, FLOPs. `peer` is False for what is no rival, such as the machine's limit.
    With `own`, a call returns its seconds itself, and what else it does isn't counted. With `warm`, what is only
    done at first isn't in them, so each call counts.
    """

    name: str
    run: Callable[[], object]
    items: float = 1.0
    peer: bool = True
    figures: Mapping[str, float] = field(default_factory=dict)
    own: bool = False
    warm: bool = False


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A contender's seconds per call, one number a round; `calls` of them made up a round's."""

    name: str
    seconds: tuple[float, ...]
    calls: int
    items: float
    peer: bool
    figures: Mapping[str, float]

    @property
    def median(self) -> float:
        """Seconds per call."""
        return median(self.seconds)

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / self.median

    @property
    def seconds_of_item(self) -> float:
        return self.median / self.items

    @property
    def spread(self) -> float:
        """The distance between the quartiles, as a share of the median: how far to trust it."""
        return between_quartiles(self.seconds) / self.median

    def ratio(self, other: "Measured") -> float:
        """How many times as fast as `other`: of the medians of items a second."""
        return self.rate / other.rate


@dataclass(frozen=True, kw_only=True)
class Goal:
    """`ours` has to be `least` times as fast as `against`, or as the fastest peer where that is None.

    With `figure`, a count of which less is better (bytes): the rival's has to be `least` times that of `ours`. With
    `allowed` too, no rival is asked: the figure may be as large as that other one of ours. `words` and `found`, with
    figures of ours in braces, tell goal and outcome where ratios would say little.
    """

    least: float
    against: str | None = None
    ours: str = OURS
    figure: str | None = None
    allowed: str | None = None
    words: str | None = None
    found: str | None = None

    def ratio(self, ours: Measured, rival: Measured) -> float:
        if self.figure is None:
            return ours.ratio(rival)
        most, value = rival.figures[self.allowed or self.figure], ours.figures[self.figure]
        return most / value if value else float("inf")

    def told(self, rival: str, *, lasting: bool = False) -> str:
        if self.words:
            return self.words
        if self.figure:
            return f"{self.figure} of {rival} at least {self.least:g} x that of {self.ours}"
        if lasting:
            return f"{self.ours} takes at most {1 / self.least:.3g} x as long as {rival}"
        return f"{self.ours} at least {self.least:g} x {rival}"

    def outcome(self, ours: Measured, rival: str, ratio: float, *, lasting: bool = False) -> str:
        """What came of it. `lasting`: told as seconds are compared, not speeds."""
        if self.found:
            return self.found.format_map(ours.figures)
        if self.figure:
            return f"{self.figure} of {rival} is {ratio:.2f} x that of {self.ours}"
        if lasting:
            return f"takes {1 / ratio:.2f} x as long as {rival}"
        return f"{ratio:.2f} x {rival}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison: everybody did the same, in the same rounds. `unit` names the items ("images").

    `lasting`: of an item, how long it takes is what one wants to know, not how many come in a second.
    """

    part: str
    name: str
    unit: str
    measured: Sequence[Measured]
    goals: Sequence[Goal] = ()
    lasting: bool = False

    def __getitem__(self, name: str) -> Measured:
        return next(measured for measured in self.measured if measured.name == name)

    def outcomes(self) -> list[tuple[Goal, str, float]]:
        """Each goal with the rival's name and the ratio that was reached; goals without a rival here are left out, but
        for those that ask for none.
        """
        found = []
        for goal in self.goals:
            ours = self[goal.ours]
            if goal.allowed is not None:
                found.append((goal, goal.ours, goal.ratio(ours, ours)))
                continue
            rivals = [m for m in self.measured if m.peer and m.name != goal.ours and goal.against in (None, m.name)]
            if goal.figure is not None:
                rivals = [m for m in rivals if goal.figure in m.figures and goal.figure in ours.figures]
            ratios = {rival.name: goal.ratio(ours, rival) for rival in rivals}
            if ratios:
                hardest = min(ratios, key=lambda name: ratios[name])
                found.append((goal, hardest, ratios[hardest]))
        return found


class Part(ABC):
    """A part of the benchmark: it says what it needs, and yields its cases as they are measured.

    Its constructor does nothing but take settings, and raises `ValueError` with what is wrong with them, a line each
    (`demand`): the checks construct it before anything is measured, too.
    """

    @abstractmethod
    def cases(self, clock: "Clock") -> Iterator[Case]: ...

    def problems(self, device: Literal["cpu", "cuda"]) -> Iterator[str]:
        """What is wrong with the trainings that it would compose or start; none, as a rule."""
        yield from ()

    def draw(self, cases: Sequence[Case], folder: Path) -> None:
        """Pictures of its own beside those of all parts, once its cases are there; none, as a rule."""
        return


def demand(problems: Iterable[str]) -> None:
    """Raises `ValueError` with all of them, a line each, where there are some."""
    if found := list(problems):
        raise ValueError("\n".join(found))


def too_small(part: str, least: int, **values: int) -> Iterator[str]:
    """The settings of a part that are below the least that they may be."""
    yield from (f"{part}.{knob}={value} must be at least {least}" for knob, value in values.items() if value < least)


class Clock:
    """rounds        measurements of each contender
    seconds       the least that one of them lasts: short calls are repeated
    device        where contenders compute
    synchronise   waits for it; None: as torch does for a GPU, and not at all for a CPU
    device_timer  milliseconds that a call keeps it busy, measured once more in each round; None: `on_gpu` for a GPU,
                  and not at all for a CPU
    """

    def __init__(
        self,
        *,
        rounds: int,
        seconds: float,
        synchronise: Callable[[], object] | None = None,
        device: torch.device = CPU,
        device_timer: DeviceTimer | None = None,
    ) -> None:
        self.rounds, self.seconds, self.device = rounds, seconds, device
        self.synchronise = synchronise or (torch.cuda.synchronize if device.type == "cuda" else lambda: None)
        self.device_timer = device_timer or (on_gpu if device.type == "cuda" else None)

    def measure(self, contenders: Sequence[Contender]) -> list[Measured]:
        calls = [self.calls(contender) for contender in contenders]
        seconds: list[list[float]] = [[] for _ in contenders]
        busy: list[list[float]] = [[] for _ in contenders]
        with no_collection():
            for number in range(self.rounds):
                gc.collect()
                for index in turns(len(contenders), number):
                    seconds[index].append(self.time(contenders[index], calls[index]))
                    if self.device_timer is not None and not contenders[index].own:
                        busy[index].append(self.device_timer(contenders[index].run, seconds[index][-1]))
        return [
            Measured(
                name=contender.name,
                seconds=tuple(times),
                calls=repeated,
                items=contender.items,
                peer=contender.peer,
                figures={**contender.figures, DEVICE_MS: median(device)} if device else contender.figures,
            )
            for contender, times, repeated, device in zip(contenders, seconds, calls, busy, strict=True)
        ]

    def calls(self, contender: Contender) -> int:
        """Warm up, and find how many calls last `seconds`: whatever the first does once is done then."""
        if contender.warm:
            return 1
        contender.run()
        self.synchronise()
        once = self.time(contender, 1)
        return max(1, round(self.seconds / once)) if once > 0 else 1

    def time(self, contender: Contender, calls: int) -> float:
        """Seconds per call."""
        if contender.own:
            return sum(cast(float, contender.run()) for _ in range(calls)) / calls
        self.synchronise()
        start = time.perf_counter()
        for _ in range(calls):
            contender.run()
        self.synchronise()
        return (time.perf_counter() - start) / calls


def on_gpu(run: Callable[[], object], seconds: float) -> float:
    """Milliseconds that a call keeps the GPU busy. `seconds`: what it takes, launching included.

    The GPU sleeps until all is launched, or it would wait for Python between two kernels, and events count that too. It
    still does where a call itself waits for the GPU, or launches more than the GPU's queue holds: then it is too much.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(round(min(seconds, LAUNCHED) * CYCLES))  # type: ignore[no-untyped-call]
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


@contextmanager
def no_collection() -> Iterator[None]:
    """Python's collector runs between the measurements, not in them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
