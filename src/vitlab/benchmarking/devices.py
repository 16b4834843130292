"""Images a second of all of `train.py` on 1, 2, 4, ... devices: whole programs, started as users start them, in turns.

    weak     each device keeps its images of a step, so `batch_size` grows with the devices
    strong   a step keeps its images, and each device gets fewer

A program trains on images in memory and ends by itself. Its rate is the median of `train/images_per_second` in its
`metrics.csv`, of the rows after the warm-up: without start, validation and checkpoints. Efficiency is the rate of a
device as a share of what it is on one device alone (on the fewest, where `counts` has no 1).
"""

import csv
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from vitlab.benchmarking.start import SOURCE, watched
from vitlab.benchmarking.timing import Case, Clock, Contender, Measured, Part
from vitlab.throughput import SPEED, TIMED, UTILISATION, WAIT

log = logging.getLogger(__name__)

Kind = Literal["weak", "strong"]
Strategy = Literal["ddp", "fsdp"]

ROW = 5  # steps of a row of `metrics.csv`
EPOCH = 20  # steps: most rows lie within one, and what its beginning takes doesn't reach the median
LONGEST = 3600.0  # seconds after which a program counts as broken
PATIENCE = 60.0  # seconds that one has to end once it was asked to
# What a device trains where nothing is said (preset, pixels, images of a step): enough to keep it busy.
NETWORKS = {"cuda": ("vit_s16", 224, 128), "cpu": ("vit_mini", 32, 64)}
COUNT, EFFICIENCY = "devices", "efficiency %"
SHARES = {UTILISATION: "MFU %", WAIT: "data wait %"}


@dataclass(frozen=True, kw_only=True)
class Program:
    """A run of `train.py`. `batch_size`: images of a step, over all devices; `trainer`: an option of that group."""

    devices: int
    batch_size: int
    trainer: str

    def __str__(self) -> str:
        return f"{self.devices} device{'s' if self.devices > 1 else ''}"


class Devices(Part):
    """counts      of devices; null: 1, 2, 4, ... and all GPUs of this machine, where it has two
    kinds       weak, strong
    strategies  of several devices: `trainer=ddp`, `trainer=fsdp`; one device trains without
    model       a preset of `conf/model`; null: vit_s16, on a CPU vit_mini
    image_size  pixels; null: 224, on a CPU 32
    batch_size  images of a step on one device, or on the fewest for each; null: 128, on a CPU 64
    warmup      steps that don't count
    steps       steps that do
    settings    of the run, as on the command line of `train.py`
    rounds      at most so many of the benchmark's, since each starts every program
    """

    def __init__(
        self,
        *,
        counts: Sequence[int] | None = None,
        kinds: Sequence[Kind] = ("weak", "strong"),
        strategies: Sequence[Strategy] = ("ddp",),
        model: str | None = None,
        image_size: int | None = None,
        batch_size: int | None = None,
        warmup: int = 20,
        steps: int = 40,
        settings: tuple[str, ...] = (),
        rounds: int = 3,
    ) -> None:
        self.counts, self.kinds, self.strategies = counts, kinds, strategies
        self.model, self.image_size, self.batch_size = model, image_size, batch_size
        self.warmup, self.steps, self.settings, self.rounds = warmup, steps, settings, rounds

    def cases(self, clock: Clock) -> Iterator[Case]:
        device = clock.device.type
        table = self.table(device)
        programs = list(dict.fromkeys(program for row in table.values() for program in row))
        if not programs:
            log.info("devices: left out, %s", why_not(device))
            return
        clock = Clock(rounds=min(self.rounds, clock.rounds), seconds=0.0)
        if device == "cuda":
            torch.cuda.empty_cache()  # the memory that other parts have left is for the programs
        log.info("devices: %d programs of train.py, %d times each ...", len(programs), clock.rounds)
        measured = clock.measure([self.contender(program, programs, device) for program in programs])
        found = dict(zip(programs, measured, strict=True))
        for name, row in table.items():
            yield Case(
                part="devices", name=name, unit="images", measured=efficient([found[program] for program in row])
            )

    def draw(self, cases: Sequence[Case], folder: Path) -> None:
        if cases:
            picture(cases, folder / "devices.png")

    def table(self, device: str) -> dict[str, list[Program]]:
        """The programs of each case, by its name, the fewest devices first; empty where there are not two to choose.

        Where only one is used, it is the same in all cases.
        """
        model, side, images = NETWORKS[device]
        images, counts = self.batch_size or images, self.chosen(device)
        found: dict[str, list[Program]] = {}
        for strategy in self.strategies if counts else ():
            for kind in self.kinds:
                share, what = (images, "a device") if kind == "weak" else (images * counts[0], "a step")
                name = (
                    f"{kind}, {strategy}, {self.model or model} at {self.image_size or side} px, {share} images {what}"
                )
                found[name] = [
                    Program(
                        devices=count,
                        batch_size=images * (count if kind == "weak" else counts[0]),
                        trainer=strategy if count > 1 else "default",
                    )
                    for count in counts
                ]
        return found

    def chosen(self, device: str) -> list[int]:
        """Numbers of devices, the fewest first."""
        if self.counts is not None:
            return sorted(self.counts)
        there = torch.cuda.device_count() if device == "cuda" else 1
        return sorted({*(2**n for n in range(there.bit_length())), there}) if there > 1 else []

    def line(self, program: Program, device: str) -> list[str]:
        """What `train.py` is given, besides where the run goes."""
        model, side, _ = NETWORKS[device]
        steps = self.warmup + self.steps
        return [
            *(f"trainer={program.trainer}", f"trainer.devices={program.devices}"),
            f"trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}",
            *(f"trainer.max_steps={steps}", f"trainer.max_epochs={steps}", f"trainer.log_every_n_steps={ROW}"),
            *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
            *(f"model={self.model or model}", f"image_size={self.image_size or side}"),
            *(f"batch_size={program.batch_size}", "data=fake"),
            f"data.source.samples={-(-10 * program.batch_size * EPOCH // 9)}",  # a tenth is held out
            *("schedule.warmup_steps=0", "logger=csv"),
            *self.settings,
        ]

    def contender(self, program: Program, programs: Sequence[Program], device: str) -> Contender:
        """Returns the seconds of a step; its figures are medians over the rounds so far."""
        line = [sys.executable, str(SOURCE / "train.py"), "hydra.run.dir={folder}", *self.line(program, device)]
        environment = {"HYDRA_FULL_ERROR": "1"}  # what goes wrong is said, and not only in a log that is gone by then
        if device == "cpu":  # a process has as many threads alone as beside others
            threads = torch.get_num_threads() // max(other.devices for other in programs)
            environment["OMP_NUM_THREADS"] = str(max(1, threads))
        figures: dict[str, float] = {COUNT: program.devices}
        seen: dict[str, list[float]] = {}

        def run() -> float:
            with tempfile.TemporaryDirectory() as folder:
                watched(line, Path(folder), latest=LONGEST, environment=environment, patience=PATIENCE)
                rates = steady(Path(folder, "metrics.csv"), warmup=self.warmup)
            what = f"{program}, trainer={program.trainer}, {program.batch_size} images a step"
            log.info("devices: %s: %.4g images/s", what, rates[SPEED])
            for name, shown in SHARES.items():
                if name in rates:
                    seen.setdefault(shown, []).append(100 * rates[name])
                    figures[shown] = median(seen[shown])
            return program.batch_size / rates[SPEED]

        return Contender(name=str(program), run=run, items=program.batch_size, figures=figures, own=True, warm=True)


def why_not(device: str) -> str:
    if device == "cpu":
        return "since processes on a CPU share its cores; devices.counts=[1,2] starts them all the same"
    return "since torch sees one GPU here; devices.counts=[1] measures that alone"


def steady(file: Path, *, warmup: int) -> dict[str, float]:
    """Medians of a run's rows that lie wholly after the warm-up, by the names of `vitlab.throughput`.

    Raises `RuntimeError` where there is none.
    """
    with file.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row.get(SPEED) and int(row["step"]) - ROW >= warmup]
    if not rows:
        raise RuntimeError(f"{file} has no row with {SPEED} after {warmup} steps of warm-up")
    known = {name: [float(row[name]) for row in rows if row.get(name)] for name in TIMED}
    return {name: median(values) for name, values in known.items() if values}


def efficient(row: Sequence[Measured]) -> list[Measured]:
    """With a device's rate as a share of what it is on the fewest, which come first."""
    each = [measured.rate / measured.figures[COUNT] for measured in row]
    shares = [{COUNT: m.figures[COUNT], EFFICIENCY: 100 * rate / each[0]} for m, rate in zip(row, each, strict=True)]
    return [replace(m, figures={**share, **m.figures}) for m, share in zip(row, shares, strict=True)]


def picture(cases: Sequence[Case], file: Path) -> None:
    """Images a second, and efficiency, against devices; dashed: as many times as fast as there are devices."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    rates, shares = figure.subplots(1, 2)
    counts = [int(measured.figures[COUNT]) for measured in cases[0].measured]
    for number, rate in enumerate(dict.fromkeys(case.measured[0].rate for case in cases)):
        label = None if number else "ideal"
        rates.plot(counts, [rate * n / counts[0] for n in counts], color="0.6", linestyle="--", label=label)
    shares.axhline(100, color="0.6", linestyle="--")
    for index, case in enumerate(cases):
        efficiency = [measured.figures[EFFICIENCY] for measured in case.measured]
        rates.errorbar(
            counts,
            [measured.rate for measured in case.measured],
            yerr=[measured.spread * measured.rate / 2 for measured in case.measured],
            fmt="o-",
            color=f"C{index}",
            label=f"{case.name} ({efficiency[-1]:.0f} % efficient on {counts[-1]})",
        )
        shares.plot(counts, efficiency, "o-", color=f"C{index}")
    for panel, title in ((rates, "images a second (whiskers: quartiles)"), (shares, EFFICIENCY)):
        panel.set_xticks(counts)
        panel.set_xlabel("devices")
        panel.set_ylabel(title)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8)
    figure.savefig(file, dpi=110)
