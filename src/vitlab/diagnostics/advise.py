"""Find changes that may make a configuration faster, and try them.

kinds of changes -> candidates -> rounds, in each of which the configuration and every candidate train -> trials
"""

import inspect
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch

from vitlab.config import paths
from vitlab.data.datamodule import MOST_WORKERS, DataModule
from vitlab.data.packing.encode import image_bytes
from vitlab.data.rows import Rows
from vitlab.data.source import Split
from vitlab.diagnostics.measure import Overrides, ProfiledRun
from vitlab.diagnostics.timing import turns
from vitlab.distributed import environment

NOISE = 0.03  # of a gain: less is always called noise
SAMPLE = 256  # files that are made smaller, at most
MARGIN = 256 / 224  # their shorter side over what is trained on: ImageNet's usual sizes
QUALITY = 90  # of their JPEG, as src/prepare.py writes it
SAVED = 0.7  # of their bytes: files that stay larger aren't tried
OTHER_SCORES = {"batch_size", "data.augment.auto_augment"}  # change what is learned, and not only the speed


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A change that was tried. gains: of each round, images per second over those of the configuration."""

    overrides: Overrides
    gains: tuple[float, ...]
    error: str = ""  # why there are no gains

    @property
    def gain(self) -> float:
        return median(self.gains) if self.gains else math.nan

    @property
    def spread(self) -> float:
        """The distance between the best and the worst round."""
        return max(self.gains) - min(self.gains) if self.gains else 0.0

    @property
    def verdict(self) -> str:
        if self.error:
            return self.error
        if abs(self.gain - 1) <= max(self.spread, NOISE):
            return "within noise"
        return "faster" if self.gain > 1 else "slower"


def candidates(
    run: ProfiledRun, changes: Sequence[str], workers: Sequence[int] | None, small_dir: str | None
) -> list[Overrides]:
    """The changes of these kinds that differ from the configuration.

    Args:
        workers: Values of data.num_workers; None: 0 and powers of 2, as far as there are cores.
        small_dir: The folder that smaller files would be in; None: they aren't tried.
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
    if small_dir is not None:
        applicable["smaller"] = [{"data": "shards", "data_dir": small_dir}]
    return [overrides for change in changes for overrides in applicable.get(change, [])]


def try_changes(
    run: ProfiledRun, changes: Sequence[Overrides], *, rounds: int, steps: int, warmup: int
) -> tuple[list[Trial], list[float]]:
    """Train the configuration and each change once per round, in changing order.

    A gain compares trainings of one round: what disturbs the machine for longer disturbs both. Returns the trials, and
    the configuration's images per second in each round.
    """
    everything, errors = [{}, *changes], dict[int, str]()
    rates: list[list[float]] = [[] for _ in everything]
    for number in range(rounds):
        for index in turns(len(everything), number):
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


def combination(trials: Sequence[Trial]) -> Overrides:
    """The best value of each setting that gains and doesn't change the scores; empty where these are fewer than two."""
    faster = [t for t in trials if t.verdict == "faster" and not OTHER_SCORES & t.overrides.keys()]
    best: Overrides = {}
    for trial in sorted(faster, key=lambda trial: trial.gain):
        best |= trial.overrides
    return best if len(best) > 1 else {}


def small_files(data: DataModule, folder: Path) -> Split | None:
    """Write some files of an image folder at about the size that is trained on; None if that saves too little."""
    split, side = data.split("train"), small_side(data)
    loader = data.load_source
    if split.files is None or isinstance(split.files, Rows) or not isinstance(loader, partial):
        return None
    kept = range(0, len(split), -(-len(split) // SAMPLE))
    files = [folder / f"{index}.jpg" for index in kept]
    for index, file in zip(kept, files, strict=True):
        file.write_bytes(image_bytes(split, index, size=side, quality=QUALITY))
    before, after = (
        sum(Path(file).stat().st_size for file in each) for each in ([split.files[i] for i in kept], files)
    )
    if after > SAVED * before:
        return None
    small = Split(None, split.labels[torch.tensor(kept)], list(map(str, files)))
    return small.subset(torch.arange(len(split)) % len(files))  # an epoch keeps its length


def small_side(data: DataModule) -> int:
    """The shorter side in pixels of files that are large enough for the size that is trained on."""
    return round(max(data.image_size) * MARGIN)


def prepare_command(data: DataModule) -> tuple[str, str]:
    """The command that packs an image folder into shards of smaller images, and the folder that it writes."""
    assert isinstance(data.load_source, partial)
    source, side = data.load_source.keywords, small_side(data)
    defaults = {name: known.default for name, known in inspect.signature(data.load_source.func).parameters.items()}
    place = Path(source["data_dir"]).resolve()
    place = place.relative_to(Path.cwd()) if Path.cwd() in place.parents else place
    target = str(place.with_name(f"{place.name}-{side}"))
    settings = {f"data.source.{k}": v for k, v in source.items() if k != "data_dir" and v != defaults[k]}
    if data.on_error == "skip":
        settings |= {"data.on_error": "skip", "data.max_skipped": data.max_skipped}
    words = {"data": data.load_source.func.__name__, "data_dir": str(place), **settings, "size": side, "out": target}
    return f"{paths.COMMAND.format('prepare')} {command_line(words)}", target


def command_line(overrides: Overrides) -> str:
    """Overrides as they are typed in a shell, their values quoted only where Hydra's grammar needs it."""
    plain = re.compile(r"[\w/.-]+")
    return " ".join(shlex.quote(f"{k}={v if plain.fullmatch(str(v)) else repr(v)}") for k, v in overrides.items())
