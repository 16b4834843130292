"""How a step's time grows with tokens, width, depth and batch, beside how its FLOPs do: `scaling.png`, log against log.

The exponent is the slope of a straight line through the medians: time ~ size ^ exponent. Theory's is the slope of the
FLOPs at the same sizes, so it has the part that doesn't grow (patches, head) and both terms of attention in it.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from vitlab.benchmarking import peers
from vitlab.benchmarking.networks import Precision, Task, Work, beside_limit, contender
from vitlab.benchmarking.timing import Case, Clock, Measured, Part

log = logging.getLogger(__name__)

Axis = Literal["tokens", "width", "depth", "batch"]
PATCH, HEAD = 16, 64  # pixels; width of a head, or all of a narrower token


@dataclass(frozen=True, kw_only=True)
class Point:
    """One network and batch, and what of it is varied."""

    tokens: int
    width: int
    depth: int
    batch: int

    def __str__(self) -> str:
        return f"{self.tokens} tokens, width {self.width}, depth {self.depth}, batch {self.batch}"

    def architecture(self) -> peers.Architecture:
        side = PATCH * round((self.tokens - 1) ** 0.5)
        heads = max(1, self.width // HEAD)
        return peers.Architecture(
            image=side,
            patch=PATCH,
            dim=self.width,
            depth=self.depth,
            heads=heads,
            hidden=4 * self.width,
            classes=1000,
        )


class Scaling(Part):
    """tokens     of an image with patches of 16, [cls] among them: 1 + a square
    width      of a token, in heads of 64
    depth      blocks
    batch      images
    axes       which of these are varied, while the others stay at `at`
    at         tokens, width, depth, batch
    names      whose networks
    task       inference; or training: forward, backward and the optimizer's step
    precision  float32, or bfloat16 by torch.autocast
    """

    def __init__(
        self,
        *,
        tokens: Sequence[int] = (50, 101, 197, 401, 785),
        width: Sequence[int] = (64, 128, 256, 512),
        depth: Sequence[int] = (2, 4, 8, 16),
        batch: Sequence[int] = (1, 2, 4, 8, 16),
        axes: Sequence[Axis] = ("tokens", "width", "depth", "batch"),
        at: tuple[int, int, int, int] = (197, 192, 4, 2),
        names: Sequence[Literal["vitlab", "timm", "torchvision"]] = ("vitlab", "timm"),
        task: Task = "training",
        precision: Precision = "float32",
    ) -> None:
        self.sizes: dict[Axis, Sequence[int]] = {"tokens": tokens, "width": width, "depth": depth, "batch": batch}
        self.at = Point(tokens=at[0], width=at[1], depth=at[2], batch=at[3])
        self.axes, self.names, self.task, self.precision = axes, names, task, precision

    def cases(self, clock: Clock) -> Iterator[Case]:
        for axis in self.axes:
            log.info("scaling: %s %s ...", axis, ", ".join(map(str, self.sizes[axis])))
            points = [replace(self.at, **{axis: size}) for size in self.sizes[axis]]
            yield from self.fitted(axis, self.measure(points, clock))

    def measure(self, points: Sequence[Point], clock: Clock) -> list[list[Measured]]:
        """Everybody's sizes in the same rounds, or what disturbs the machine would bend a line."""
        contenders = [
            contender(name, point.architecture(), self.work(point), clock.device)
            for point in points
            for name in self.names
        ]
        *measured, _ = beside_limit(clock, contenders, self.precision)
        count = len(self.names)
        return [measured[place : place + count] for place in range(0, len(measured), count)]

    def work(self, point: Point) -> Work:
        return Work(task=self.task, batch=point.batch, precision=self.precision, mode="eager")

    def fitted(self, axis: Axis, measured: Sequence[Sequence[Measured]]) -> Iterator[Case]:
        """A case for each size, once all are there: each has the exponents among its figures."""
        sizes = self.sizes[axis]
        fits = [
            {
                "exponent": slope(sizes, [m.median for m in row]),
                "FLOPs exponent": slope(sizes, [m.figures["MFLOPs"] * m.items for m in row]),
            }
            for row in zip(*measured, strict=True)
        ]
        for size, row in zip(sizes, measured, strict=True):
            told = [replace(m, figures={"size": size, **m.figures, **fit}) for m, fit in zip(row, fits, strict=True)]
            yield Case(part="scaling", name=f"{axis} {size}", unit="images", measured=told)

    def draw(self, cases: Sequence[Case], folder: Path) -> None:
        picture(cases, folder / "scaling.png", title=f"{self.task} in {self.precision}; what is not varied: {self.at}")


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Of the straight line through the logarithms, by least squares: values ~ sizes ^ slope."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def picture(cases: Sequence[Case], file: Path, *, title: str) -> None:
    """A panel for each axis: medians, the line fitted to them, and dashed how the FLOPs of that network grow."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    axes = list(dict.fromkeys(case.name.split()[0] for case in cases))
    figure = Figure(figsize=(4.2 * len(axes), 4.4), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        chosen = [case for case in cases if case.name.split()[0] == axis]
        for index, name in enumerate(m.name for m in chosen[0].measured):
            rows = [case[name] for case in chosen]
            sizes, seconds = np.array([m.figures["size"] for m in rows]), np.array([m.median for m in rows])
            exponent, theory = rows[0].figures["exponent"], rows[0].figures["FLOPs exponent"]
            panel.plot(sizes, through(sizes, seconds, exponent), color=f"C{index}", linewidth=1)
            panel.errorbar(
                sizes,
                seconds,
                yerr=[m.spread * m.median / 2 for m in rows],
                fmt="o",
                color=f"C{index}",
                label=f"{name}: {axis}^{exponent:.2f}",
            )
            label = f"FLOPs of {name}: {axis}^{theory:.2f}"
            panel.plot(
                sizes, through(sizes, seconds, theory), color=f"C{index}", alpha=0.6, linestyle="--", label=label
            )
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(sizes, [f"{size:g}" for size in sizes])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel(axis)
        panel.grid(alpha=0.3, which="both")
        panel.legend(fontsize=8)
    panels[0].set_ylabel("seconds of a step (whiskers: quartiles)")
    figure.savefig(file, dpi=110)


def through(sizes: "np.ndarray", values: "np.ndarray", exponent: float) -> "np.ndarray":
    """The line with this exponent through the middle of the values."""
    middle = np.exp(np.mean(np.log(values) - exponent * np.log(sizes)))
    line: np.ndarray = middle * sizes**exponent
    return line
