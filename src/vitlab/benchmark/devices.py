"""Images per second of all of `train.py` on 1, 2, 4, ... devices: complete programs, in turns.

    weak     each device keeps its images per step: `batch_size` grows with the devices
    strong   a step keeps its images: each device gets fewer

A program trains on made-up images in memory; its rate is that of its results, without start, validation and
checkpoints. Efficiency is the rate per device relative to that on the fewest, of which one trains without a strategy.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Literal, NamedTuple

import torch

from vitlab.benchmark.case import Case, Part, with_exponents
from vitlab.benchmark.startup import SOURCE, run_process
from vitlab.diagnostics.timing import Clock, Contender

log = logging.getLogger(__name__)

ROW = 10  # steps per row of the log
EPOCH = 50  # steps: in most rows none begins
MAX_ROUNDS = 3  # each starts every program
TIMEOUT = 3600.0  # seconds
# What trains by default (preset, pixels, images per step of a device): enough to keep a device busy.
NETWORKS = {"cuda": ("vit_s16", 224, 128), "cpu": ("vit_mini", 32, 64)}
FIXED = ("devices", "accelerator", "max_steps", "max_epochs", "log_every_n_steps")


class Program(NamedTuple):
    """A run of `train.py`. `batch_size` is over all devices, `trainer` an option of that group."""

    devices: int
    batch_size: int
    trainer: str


@dataclass(kw_only=True)
class Devices(Part):
    """train.py on several numbers of devices.

    Args:
        counts: Numbers of devices; None: 1, 2, 4, ... and all GPUs of this machine, if it has two.
        strategy: Strategy of several devices: `trainer=ddp` or `trainer=fsdp`.
        batch_size: Batch size of one device; None: 128, on a CPU 64.
        steps: Optimizer steps of a program; the first ten warm up.
        settings: Overrides of all runs, as on the command line of train.py, such as model=vit_b16.
    """

    part = "devices"
    minimum: ClassVar = {"steps": 2 * ROW}
    fixed = ("hydra.", "batch_size=", "trainer=", *(f"trainer.{key}=" for key in FIXED))

    counts: Sequence[int] | None = None
    strategy: Literal["ddp", "fsdp"] = "ddp"
    batch_size: int | None = None
    steps: int = 60
    settings: tuple[str, ...] = ()

    def runs(self, device: str) -> dict[str, list[str]]:
        return {str(program): self.lines(program, device) for row in self.table(device).values() for program in row}

    def cases(self, clock: Clock) -> Iterator[Case]:
        device, table = clock.device.type, self.table(clock.device.type)
        programs = list(dict.fromkeys(program for row in table.values() for program in row))
        if not programs:
            log.info("devices: left out, torch finds no two GPUs; devices.counts=[1,2] starts processes on a CPU too")
            return
        if device == "cuda":
            torch.cuda.empty_cache()  # the programs need the memory that other parts have used
        clock = Clock(rounds=min(MAX_ROUNDS, clock.rounds), seconds=0.0)
        # on a CPU, a process has as many threads alone as next to others
        shared = 1 if device == "cuda" else max(program.devices for program in programs)
        threads, cases = max(1, torch.get_num_threads() // shared), []
        measured = clock.measure([self.contender(program, device, threads) for program in programs])
        for row in zip(*table.values(), strict=True):
            count, found = row[0].devices, []
            for name, program in zip(table, row, strict=True):
                first, m = measured[0], measured[programs.index(program)]  # the first one is that of all rows
                share = 100 * (m.rate / count) / (first.rate / programs[0].devices)
                found.append(replace(m, name=name, figures={"efficiency %": share, **m.figures}))
            cases.append(Case(part=self.part, name=f"on {count}", axis="devices", size=count, measured=found))
        yield from with_exponents(cases, [1.0] * len(table)) if len(cases) > 1 else cases

    def table(self, device: str) -> dict[str, list[Program]]:
        """The programs of each kind of scaling, the fewest devices first."""
        images, gpus = self.batch_size or NETWORKS[device][2], torch.cuda.device_count() if device == "cuda" else 1
        powers = {*(2**n for n in range(gpus.bit_length())), gpus} if gpus > 1 else set()
        counts = sorted(powers if self.counts is None else set(self.counts))
        trainers = [self.strategy if count > 1 else "default" for count in counts]
        sizes = {f"weak, {images} images a device": [images * count for count in counts]}
        sizes |= {f"strong, {images * count} images a step": [images * count] * len(counts) for count in counts[:1]}
        return {name: list(map(Program, counts, row, trainers)) for name, row in sizes.items()}

    def lines(self, program: Program, device: str) -> list[str]:
        """The settings of `train.py`, besides its folder."""
        model, side, _ = NETWORKS[device]
        samples = -(-10 * program.batch_size * EPOCH // 9)  # a tenth is validated
        settings = ["data=fake", f"data.source.samples={samples}", f"batch_size={program.batch_size}", "logger=csv"]
        settings += ["trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "schedule.warmup_steps=0"]
        values = (program.devices, "gpu" if device == "cuda" else "cpu", self.steps, self.steps, ROW)
        settings += [f"trainer.{key}={value}" for key, value in zip(FIXED, values, strict=True)]
        settings += [f"trainer={program.trainer}", f"image_size={side}"]
        chosen = any(line.startswith("model=") for line in self.settings)
        return [*settings, *([] if chosen else [f"model={model}"]), *self.settings]

    def contender(self, program: Program, device: str, threads: int) -> Contender:
        """A call returns the seconds of a step."""
        arguments = [str(SOURCE / "train.py"), "hydra.run.dir={folder}", *self.lines(program, device)]
        figures: dict[str, float] = {}

        def run() -> float:
            with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                run_process(arguments, folder, timeout=TIMEOUT, threads=threads)
                results = json.loads(Path(folder, "results.json").read_text())
            shares = {"MFU %": results.get("mfu"), "data wait %": results.get("data_wait")}
            figures.update({name: 100 * share for name, share in shares.items() if share is not None})
            return program.batch_size / float(results["images_per_second"])

        return Contender(name=str(program), run=run, items=program.batch_size, figures=figures, self_timed=True)
