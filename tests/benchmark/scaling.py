"""Measure how the time and the FLOPs of a step grow with tokens, width, depth and batch size.

The ideal exponent is that of the network's FLOPs at the same sizes, including constant terms (patches, head) and both
terms of attention.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isqrt
from typing import Literal

import torch

from benchmark.case import Case, Part, slope, with_exponents
from benchmark.networks import MFLOPS, Precision, Task, contender, measure_with_limit
from benchmark.peers import Architecture
from benchmark.timing import Clock, Contender

log = logging.getLogger(__name__)

AXES = ("tokens", "width", "depth", "batch")
PATCH, HEAD = 16, 64  # pixels; largest width of a head


@dataclass(kw_only=True)
class Scaling(Part):
    """Time and FLOPs against one size at a time; an axis without sizes is skipped.

    Args:
        tokens: Numbers of tokens: [cls] and a square of 16-pixel patches.
        width: Widths of a token, in heads of 64.
        depth: Numbers of blocks.
        batch: Batch sizes.
        at: Tokens, width, depth and batch size where they are not varied.
        networks: Libraries.
        task: Inference, or training: forward, backward and the optimizer's step.
        precision: float32, or bfloat16 with torch.autocast.
    """

    part = "scaling"

    tokens: Sequence[int] = (50, 101, 197, 401, 785)
    width: Sequence[int] = (64, 128, 256, 512)
    depth: Sequence[int] = (2, 4, 8, 16)
    batch: Sequence[int] = (1, 2, 4, 8, 16)
    at: tuple[int, int, int, int] = (197, 192, 4, 2)
    networks: Sequence[Literal["vitlab", "timm", "torchvision"]] = ("vitlab", "timm")
    task: Task = "training"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if wrong := [n for n in (*self.tokens, self.at[0]) if isqrt(max(n - 1, 1)) ** 2 != n - 1]:
            nearest = [1 + isqrt(max(n - 1, 1)) ** 2 for n in wrong]
            raise ValueError(f"scaling.tokens: {wrong} are not [cls] and a square of patches; use {nearest}")

    def cases(self, clock: Clock) -> Iterator[Case]:
        for axis, sizes in ((axis, getattr(self, axis)) for axis in AXES if getattr(self, axis)):
            log.info("scaling: %s %s ...", axis, ", ".join(map(str, sizes)))
            points = [{**dict(zip(AXES, self.at, strict=True)), axis: size} for size in sizes]
            # all sizes in the same rounds, so that a disturbance of the machine affects all
            contenders = [self.contender(name, point, clock.device) for point in points for name in self.networks]
            measured = iter(measure_with_limit(clock, contenders, self.precision))
            rows = [list(islice(measured, len(self.networks))) for _ in sizes]
            cases = [
                Case(part=self.part, name=f"{axis} {size}", unit=None, axis=axis, size=size, measured=row)
                for size, row in zip(sizes, rows, strict=True)
            ]
            flops = [[m.figures[MFLOPS] * m.items for m in column] for column in zip(*rows, strict=True)]
            yield from with_exponents(cases, [slope(sizes, column) for column in flops])

    def contender(self, name: str, at: Mapping[str, int], device: torch.device) -> Contender:
        heads, side = max(1, at["width"] // HEAD), PATCH * isqrt(at["tokens"] - 1)
        size = Architecture(side, PATCH, at["width"], at["depth"], heads, hidden=4 * at["width"])
        return contender(name, size, self.task, at["batch"], self.precision, device, "eager")
