"""Measure the images per second of `train.py` on 1, 2, 4, ... devices: complete programs, in turns.

    weak     constant images per step and device: `batch_size` grows with the devices
    strong   constant images per step

A program trains on random images in memory; its rate is read from its results, without start, validation and
checkpoints. Efficiency is the rate per device relative to that on the smallest number of devices.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import torch

from benchmark.case import Case, Part, with_exponents
from benchmark.startup import SOURCE, run_process
from benchmark.timing import Clock, Contender

log = logging.getLogger(__name__)

ROW = 10  # steps per row of the log
EPOCH = 50  # steps
MAX_ROUNDS = 3  # each starts all programs
TIMEOUT = 3600.0  # seconds
# Defaults (preset, pixels, images per step and device) that keep a device busy.
NETWORKS = {"cuda": ("vit_s16", 224, 128), "cpu": ("vit_mini", 32, 64)}
FIXED = ("devices", "accelerator", "max_steps", "max_epochs", "log_every_n_steps")


class Program(NamedTuple):
    """A run of `train.py`. `batch_size` is the sum over devices, `trainer` an option of that group."""

    devices: int
    batch_size: int
    trainer: str


@dataclass(kw_only=True)
class Devices(Part):
    """train.py on several numbers of devices.

    Args:
        counts: Numbers of devices. None: 1, 2, 4 ... and all GPUs of this machine, if it has two or more.
        strategy: Strategy of several devices: `trainer=ddp` or `trainer=fsdp`.
        batch_size: Batch size per device. None: 128, on a CPU 64.
        steps: Optimizer steps of a program, including ten of warm-up; at least 20.
        settings: Overrides of all runs of train.py, such as model=vit_b16.
    """

    part = "devices"

    counts: Sequence[int] | None = None
    strategy: Literal["ddp", "fsdp"] = "ddp"
    batch_size: int | None = None
    steps: int = 60
    settings: tuple[str, ...] = ()

    def cases(self, clock: Clock) -> Iterator[Case]:
        device, table = clock.device.type, self.table(clock.device.type)
        programs = list(dict.fromkeys(program for row in table.values() for program in row))
        if not programs:
            log.info("devices: skipped, torch finds fewer than two GPUs; devices.counts=[1,2] measures processes")
            return
        if device == "cuda":
            torch.cuda.empty_cache()  # for the programs
        clock = Clock(rounds=min(MAX_ROUNDS, clock.rounds), seconds=0.0)
        # on a CPU, a process has as many threads as when the largest number runs
        shared = 1 if device == "cuda" else max(program.devices for program in programs)
        threads, cases = max(1, torch.get_num_threads() // shared), []
        measured = clock.measure([self.contender(program, device, threads) for program in programs])
        for row in zip(*table.values(), strict=True):
            count, measurements = row[0].devices, []
            for name, program in zip(table, row, strict=True):
                first, m = measured[0], measured[programs.index(program)]
                share = 100 * (m.rate / count) / (first.rate / programs[0].devices)
                measurements.append(replace(m, name=name, figures={"efficiency %": share, **m.figures}))
            cases.append(Case(part=self.part, name=f"on {count}", axis="devices", size=count, measured=measurements))
        yield from with_exponents(cases, [1.0] * len(table)) if len(cases) > 1 else cases

    def table(self, device: str) -> dict[str, list[Program]]:
        """The programs of each kind of scaling, in the order of the devices."""
        images, gpus = self.batch_size or NETWORKS[device][2], torch.cuda.device_count() if device == "cuda" else 1
        powers = {*(2**n for n in range(gpus.bit_length())), gpus} if gpus > 1 else set()
        counts = sorted(powers if self.counts is None else set(self.counts))
        trainers = [self.strategy if count > 1 else "default" for count in counts]
        sizes = {f"weak, {images} images a device": [images * count for count in counts]}
        sizes |= {f"strong, {images * count} images a step": [images * count] * len(counts) for count in counts[:1]}
        return {name: list(map(Program, counts, row, trainers)) for name, row in sizes.items()}

    def lines(self, program: Program, device: str) -> list[str]:
        """The settings of `train.py`, except for its folder."""
        model, side, _ = NETWORKS[device]
        samples = -(-10 * program.batch_size * EPOCH // 9)  # a tenth is for validation
        settings = ["data=fake", f"data.source.samples={samples}", f"batch_size={program.batch_size}", "logger=csv"]
        settings += ["trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "schedule.warmup_steps=0"]
        values = (program.devices, "gpu" if device == "cuda" else "cpu", self.steps, self.steps, ROW)
        settings += [f"trainer.{key}={value}" for key, value in zip(FIXED, values, strict=True)]
        settings += [f"trainer={program.trainer}", f"image_size={side}"]
        chosen = any(line.startswith("model=") for line in self.settings)
        return [*settings, *([] if chosen else [f"model={model}"]), *self.settings]

    def contender(self, program: Program, device: str, threads: int) -> Contender:
        """A contender whose calls return the seconds of a step."""
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
