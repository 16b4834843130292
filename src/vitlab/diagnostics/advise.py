"""Try changes that may make a configuration faster.

kinds of changes -> candidates -> rounds, in each of which the configuration and every candidate train -> trials
"""

import math
import random
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from vitlab.data.datamodule import MOST_WORKERS
from vitlab.diagnostics.measure import Overrides, ProfiledRun
from vitlab.distributed import environment

NOISE = 0.03  # smaller gains are always noise
OTHER_SCORES = {"batch_size", "data.augment.auto_augment"}  # change the training, and not only its speed


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A tried change. gains: in each round, images per second relative to the configuration."""

    overrides: Overrides
    gains: tuple[float, ...]
    error: str = ""  # instead of gains

    @property
    def gain(self) -> float:
        return median(self.gains) if self.gains else math.nan

    @property
    def spread(self) -> float:
        return max(self.gains) - min(self.gains) if self.gains else 0.0

    @property
    def verdict(self) -> str:
        if self.error:
            return self.error
        if abs(self.gain - 1) <= max(self.spread, NOISE):
            return "within noise"
        return "faster" if self.gain > 1 else "slower"


def candidates(run: ProfiledRun, changes: Sequence[str], workers: Sequence[int] | None) -> list[Overrides]:
    """The changes of these kinds that differ from the configuration.

    `workers`: values of data.num_workers; None: 0 and powers of 2, up to the number of cores.
    """
    data, trainer, cores = run.datamodule, run.trainer, min(environment.cores(), MOST_WORKERS)
    configured = run.data({}).train_dataloader().num_workers
    counts = sorted({n for n in (0, 1, 2, 4, 8, 16, cores) if n <= cores}) if workers is None else workers
    applicable: dict[str, list[Overrides]] = {"compile": [{"compile": True}]}
    applicable["num_workers"] = [{"data.num_workers": count} for count in counts if count != configured]
    if str(trainer["precision"]) in ("32-true", "32", "None"):
        applicable["precision"] = [{"trainer.precision": "bf16-mixed"}]
    if 2 * data.batch_size <= data.samples["train"]:
        applicable["batch_size"] = [{"batch_size": 2 * data.batch_size}]
    if int(trainer["log_every_n_steps"]) < 50:
        applicable["log_every_n_steps"] = [{"trainer.log_every_n_steps": 50}]
    if data.augment.auto_augment != "none":
        applicable["auto_augment"] = [{"data.augment.auto_augment": "none"}]
    return [overrides for change in changes for overrides in applicable.get(change, [])]


def try_changes(
    run: ProfiledRun, changes: Sequence[Overrides], *, rounds: int, steps: int, warmup: int
) -> tuple[list[Trial], list[float]]:
    """Train the configuration and each change once per round, in random order.

    A gain compares trainings of one round. Returns the trials, and the configuration's images per second in each round.
    """
    everything, errors = [{}, *changes], dict[int, str]()
    rates: list[list[float]] = [[] for _ in everything]
    for number in range(rounds):
        for index in random.Random(number).sample(range(len(everything)), len(everything)):
            if index not in errors:
                try:
                    timing = run.train(everything[index], steps=steps, warmup=warmup)
                    rates[index].append(timing.images / timing.seconds)
                except torch.OutOfMemoryError:
                    errors[index] = "out of memory"
    trials = []
    for index, overrides in enumerate(changes, 1):
        gains = () if index in errors else tuple(a / b for a, b in zip(rates[index], rates[0], strict=True))
        trials.append(Trial(overrides=overrides, gains=gains, error=errors.get(index, "")))
    return trials, rates[0]


def command_line(overrides: Overrides) -> str:
    """Overrides for a shell, quoted only if Hydra's grammar needs it."""
    plain = re.compile(r"[\w/.-]+")
    return " ".join(shlex.quote(f"{k}={v if plain.fullmatch(str(v)) else repr(v)}") for k, v in overrides.items())
