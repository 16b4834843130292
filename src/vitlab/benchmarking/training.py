"""All of `train.py`'s training beside a bare loop: composed as it is, on images in memory, step for step in turns.

    vitlab       Lightning's Trainer with every default callback but the checkpoints, `metrics.csv`, progress in a
                 terminal, images drawn, varied and normalised in each step; no validation
    bare loop    the same network, precision, optimizer and clipping on batches that such a fit has made
    timm         timm's network of the same size in the place of ours, all else as in `vitlab`

A fit runs in a thread of its own and waits after every few steps, so that the others have their turn. Where the time
of a run goes, with validation and checkpoints, is measured apart, by Lightning's own profiler, for its second epoch.
"""

import inspect
import io
import itertools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from vitlab import build, command, flops
from vitlab.benchmarking.networks import Precision, beside_limit
from vitlab.benchmarking.settings import train_problems
from vitlab.benchmarking.timing import OURS, Case, Clock, Contender, Goal, Part, demand, too_small
from vitlab.classifier import Classifier
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import TrainBatch
from vitlab.models.vit import VisionTransformer
from vitlab.schema import Node

# What timm's twin is given, and what makes no other network of ours. The twin always learns its positions.
TWINS = {"image_size", "patch_size", "in_channels", "num_classes", "dim", "depth", "heads", "position"}
TWINS |= {"checkpointing", "embedding", "fused_attention"}
DEFAULT = "the default run"
BARE, TIMM = "bare loop", "timm, same harness"
# What takes a run's time, with the parts of a step that belong to it. Callbacks are logging, but for those that save.
SHARES: dict[str, tuple[str, ...]] = {
    "data": ("reading", "varying", "moving", "augmentation"),
    "step": STEP,
    "logging": ("callbacks",),
    "evaluation": (),
    "checkpoints": (),
    "other": ("loop",),
}
SPANNED = 1  # the epoch whose time is shared out, counted from 0: what a run does once has been done by then
SAVING = ("BestCheckpoint", "LastCheckpoint")


class Training(Part):
    """What is timed step by step has no wandb (`logger=csv`: `metrics.csv` alone), no warm-up of the rate, and neither
    validation nor checkpoints; the shares of an epoch have these two.

    default   the run of `train.py` without settings, but for that: the digits, with their augmentation
    networks  and on made-up images: presets of `conf/model`, each with the side of its images in pixels
    samples   so many of these, of which a tenth is validated: 91 at least, for one of each of ten classes
    settings  of all runs, as on the command line of `train.py`
    """

    def __init__(
        self,
        *,
        default: bool = True,
        networks: Mapping[str, int] | None = None,
        batch_size: int = 64,
        samples: int = 1024,
        settings: tuple[str, ...] = (),
    ) -> None:
        self.default, self.networks = default, {"vit_mini": 32, "vit_s16": 64} if networks is None else networks
        self.batch_size, self.samples, self.settings = batch_size, samples, settings
        found = [*too_small("training", 1, batch_size=batch_size), *too_small("training", 91, samples=samples)]
        for name, side in self.networks.items():
            if side < 1:
                found.append(f"training.networks={{{name}: {side}}}: a side of images must be at least 1 pixel")
        for line in settings:
            if line.lstrip("+").startswith("hydra."):
                found.append(f"training.settings: {line} is for the part to set; leave it out")
        if not (default or self.networks):
            found.append("training.default=false and training.networks={} leave nothing to measure; name a network")
        demand(found)

    def problems(self, device: Literal["cpu", "cuda"]) -> Iterator[str]:
        """The settings are at fault for what their runs would not say without them."""
        found = list[str]()
        for name, lines in self.runs(device).items():
            if not self.settings and name == DEFAULT:
                continue
            lines_of_all = [*lines, *self.settings]
            wrong = train_problems(lines_of_all)
            if not wrong and (beyond := set_beyond_twin(composed(lines_of_all)["model"])):
                found.append(f"training: timm's twin has no such option as {', '.join(beyond)}; leave it out")
            own = name in self.networks and bool(wrong) and (not self.settings or bool(train_problems(lines)))
            made_up = f"training.batch_size={self.batch_size}, training.samples={self.samples}"
            said = f"training.networks={{{name}: {self.networks[name]}}}, {made_up}" if own else "training.settings"
            found += [f"{said}: train.py would say: {problem.splitlines()[0]}" for problem in wrong]
        yield from dict.fromkeys(found)

    def runs(self, device: Literal["cpu", "cuda"]) -> dict[str, list[str]]:
        """What `train.py` is given for each case, but `settings`."""
        common = [f"trainer.accelerator={'cpu' if device == 'cpu' else 'gpu'}", "logger=csv", "schedule.warmup_steps=0"]
        runs = {DEFAULT: common} if self.default else {}
        for name, side in self.networks.items():
            made_up = ["data=fake", f"data.source.samples={self.samples}", f"batch_size={self.batch_size}"]
            runs[name] = [*common, *made_up, f"model={name}", f"image_size={side}"]
        return runs

    def cases(self, clock: Clock) -> Iterator[Case]:
        for name, lines in self.runs("cuda" if clock.device.type == "cuda" else "cpu").items():
            config = composed([*lines, *self.settings])
            with process_as_before():
                size = f" at {self.networks[name]} px" if name in self.networks else ""
                measured = self.case(clock, config, f"{name}{size}, {config['data']['batch_size']} images a step")
            yield measured

    def case(self, clock: Clock, config: Node, name: str) -> Case:
        with ExitStack() as stack:
            ours, theirs = (stack.enter_context(running(config, theirs=which)) for which in (False, True))
            ours.steps(4)  # makes the batches for the bare loop
            theirs.steps(1)
            loop, count = bare(config, ours), fmean(len(batch.images) for batch in ours.batches)
            # in a thread as well: memory comes otherwise to the main one
            thread = stack.enter_context(ThreadPoolExecutor(1))
            own, timms = counted(ours), counted(theirs)
            precision: Precision = "bf16" if str(config["trainer"]["precision"]).startswith("bf16") else "float32"
            measured = beside_limit(
                clock,
                [
                    Contender(name=OURS, run=lambda: ours.steps(1), items=count, figures=own | shares(config)),
                    Contender(name=BARE, run=lambda: thread.submit(loop).result(), items=count, figures=own),
                    Contender(name=TIMM, run=lambda: theirs.steps(1), items=count, figures=timms),
                ],
                precision,
            )
        goals = [Goal(least=0.97, against=BARE), Goal(least=1.0, against=TIMM)]
        return Case(part="training", name=name, unit="images", measured=measured, goals=goals)


def counted(fit: "Fit") -> dict[str, float]:
    """What an image takes in training."""
    _, channels, height, width = fit.batches[-1].images.shape
    return {"MFLOPs": flops.training_flops(fit.module.network, (channels, height, width)) / 1e6}


def composed(lines: list[str]) -> Node:
    """What `train.py` would be given for these settings."""
    with command.composing():
        config = command.plain(command.compose("train", lines), command.UNSET_RUN_DIR)
    if isinstance(config, str):
        raise ValueError(config)
    return config


@contextmanager
def process_as_before() -> Iterator[None]:
    """What fits change of the process, and the block leaves as it was: a Trainer may demand deterministic algorithms,
    and of two progress bars at a time the first that ends leaves what is printed to the other.
    """
    before, streams = torch.are_deterministic_algorithms_enabled(), (sys.stdout, sys.stderr)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        sys.stdout, sys.stderr = streams


# ------------------------------------------------------------------------------------------------------------ fits


class Fit(Callback):
    """A fit in a thread of its own, which goes on for as many steps as it is asked for, and waits."""

    def __init__(self) -> None:
        self.batches: list[TrainBatch] = []  # those that it trained on last
        self.error: BaseException | None = None
        self._left = 0
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._ends = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self, trainer: Trainer, module: Classifier, datamodule: DataModule) -> None:
        self.trainer, self.module, self.datamodule = trainer, module, datamodule
        trainer.callbacks.append(self)  # type: ignore[attr-defined]
        self._thread.start()
        self._done.acquire()

    def steps(self, count: int) -> None:
        """Goes on for so many steps. Raises what the fit did."""
        self._left = count
        self._go.release()
        self._done.acquire()
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        self._ends = True
        self._go.release()
        self._thread.join()

    def _run(self) -> None:
        try:
            self.trainer.fit(self.module, self.datamodule)
        except BaseException as error:
            self.error = error
        finally:
            self._done.release()

    def _pause(self) -> None:
        self._done.release()
        self._go.acquire()
        self.trainer.should_stop = self._ends

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TrainBatch, batch_idx: int
    ) -> None:
        self.batches = [*self.batches[-3:], batch]
        self._left -= 1
        if self._left <= 0 and not self._ends:
            self._pause()


@contextmanager
def running(config: Node, *, theirs: bool) -> Iterator[Fit]:
    """A fit without validation and checkpoints, of our network or of timm's; ended with the block."""
    with tempfile.TemporaryDirectory() as folder:
        datamodule, module = made(config, theirs=theirs)
        changed = {"max_epochs": 10**6, "limit_val_batches": 0, "enable_checkpointing": False}
        fit = Fit()
        fit.begin(trainer(config, Path(folder), changed, without=("best", "last")), module, datamodule)
        try:
            yield fit
        finally:
            fit.end()


def made(config: Node, *, theirs: bool = False) -> tuple[DataModule, Classifier]:
    datamodule = build.data(config["data"])
    parts = {"optimizer": config["optimizer"], "schedule": config["schedule"]}
    module = build.classifier(config["model"], datamodule, config["classifier"], **parts)
    if theirs:
        assert isinstance(module.network, VisionTransformer)
        ours = module.network
        module.network = timm_twin(config["model"], num_classes=datamodule.num_classes, channels=datamodule.channels)
        demand_same(config["model"], ours, module.network)
    return datamodule, module


def timm_twin(model: Node, *, num_classes: int, channels: int) -> torch.nn.Module:
    """timm's network of the shape that `model` gives ours."""
    from timm.models import VisionTransformer as Timm

    return Timm(
        img_size=model["image_size"],
        patch_size=model["patch_size"],
        in_chans=channels,
        num_classes=num_classes,
        embed_dim=model["dim"],
        depth=model["depth"],
        num_heads=model["heads"],
    )


def demand_same(model: Node, ours: VisionTransformer, theirs: torch.nn.Module) -> None:
    """Raises `ValueError` where a setting that timm's twin isn't given makes ours another network."""
    said = set_beyond_twin(model)
    counts = [sum(p.numel() for name, p in each.named_parameters() if name != "pos_embed") for each in (ours, theirs)]
    if said or counts[0] != counts[1]:
        raise ValueError(
            f"training: vitlab's network has {counts[0]:,} parameters besides positions, and timm's {counts[1]:,}: "
            f"timm's twin has no such option as {', '.join(said) or 'this model'}; leave it out of training.settings"
        )


def set_beyond_twin(model: Node) -> list[str]:
    """Settings that make our network one that timm's twin isn't."""
    defaults = inspect.signature(VisionTransformer).parameters
    return [
        f"model.{name}={value}"
        for name, value in model.items()
        if name in defaults and name not in TWINS and value != defaults[name].default
    ]


def trainer(config: Node, folder: Path, changed: Node, *, without: tuple[str, ...] = ()) -> Trainer:
    """`train.py`'s Trainer in an empty folder; its progress bar draws, to nowhere, what it would in a terminal."""
    callbacks = {name: node for name, node in moved(config["callbacks"], folder).items() if name not in without}
    made_trainer = build.trainer(config["trainer"] | changed, run_dir=folder, logger={}, callbacks=callbacks)
    for callback in made_trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RichProgressBar):
            callback._console_kwargs = {"file": io.StringIO(), "force_terminal": True}
    return made_trainer


def moved(value: Any, folder: Path) -> Any:
    """Settings with `folder` in place of the run folder that a configuration has while it is checked."""
    if isinstance(value, dict):
        return {key: moved(inner, folder) for key, inner in value.items()}
    below = isinstance(value, str) and value.startswith(f"{command.UNSET_RUN_DIR}{os.sep}")
    return str(folder / value.partition(os.sep)[2]) if below else value


def bare(config: Node, fit: Fit) -> Callable[[], None]:
    """A step of the shortest loop there is: forward, backward, clip, optimizer."""
    _, module = made(config)
    network = module.network.to(fit.trainer.strategy.root_device).train()
    optimizer, clip = module.optimizer(), config["trainer"].get("gradient_clip_val")
    batches, context = itertools.cycle(fit.batches), fit.trainer.precision_plugin.forward_context

    def step() -> None:
        batch = next(batches)
        with context():
            loss = module.losses(network(batch.images), batch.targets).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if clip:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()

    return step


# ---------------------------------------------------------------------------------------------------------- shares


def shares(config: Node) -> dict[str, float]:
    """Where the time of an epoch goes, in percent, with validation and checkpoints."""
    spent, seconds = epoch(config)
    return {f"{name} %": 100 * value / seconds for name, value in spent.items()}


def epoch(config: Node) -> tuple[dict[str, float], float]:
    """Seconds of an epoch by what they are spent on, each of them once, and of all of it; `other` is between these.

    It is a run's second epoch, from its start to that of the third: what a run does once, in its first steps or at its
    end, is in none of them (FLOPs counted, the device's peak measured, memory and threads taken, the last checkpoint).
    """
    with tempfile.TemporaryDirectory() as folder:
        datamodule, module = made(config)
        run = trainer(config, Path(folder), {"max_epochs": SPANNED + 2})
        span = Span(Stages(run.strategy.root_device))
        run.profiler = span.stages  # type: ignore[attr-defined]
        run.callbacks.append(span)  # type: ignore[attr-defined]
        run.fit(module, datamodule)
    parts, saving, aside = span.parts, *(callbacks(times, which=SAVING) for times in (span.training, span.validation))
    found = {name: sum(parts[part] for part in belonging) for name, belonging in SHARES.items()}
    inside = callbacks(span.validation)
    found["logging"] += inside - saving - aside
    found["evaluation"] += span.evaluation - inside
    found["checkpoints"] += saving + aside
    return found, span.seconds


def callbacks(seconds: Mapping[str, float], *, which: tuple[str, ...] = ("",)) -> float:
    """Of what was recorded, the seconds of callbacks whose names begin so."""
    return sum(
        value for name, value in seconds.items() if name.startswith(tuple(f"[Callback]{kind}" for kind in which))
    )


class Span(Callback):
    """An epoch, from its start to the next one's, in seconds, after which the run ends; what is recorded within a
    validation is kept apart. To be the last callback: what the others do at a validation's end is within it.
    """

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.seconds = self.evaluation = 0.0
        self.parts: dict[str, float] = {}
        self.training: dict[str, float] = {}  # by the names of Lightning's profiler
        self.validation: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == SPANNED + 1:
            self.finish()
            trainer.should_stop = True  # after a step
        elif trainer.current_epoch == SPANNED:
            self.stages.recorded_durations.clear()
            self.evaluation, self.validation = 0.0, {}
            self._begun = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._known = {name: len(times) for name, times in self.stages.recorded_durations.items()}
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.evaluation += time.perf_counter() - self._paused
        for name, times in self.stages.recorded_durations.items():
            known = self._known.get(name, 0)
            self.validation[name] = self.validation.get(name, 0.0) + sum(times[known:])
            del times[known:]

    def finish(self) -> None:
        self.seconds = time.perf_counter() - self._begun
        recorded = self.stages.recorded_durations
        for seconds in (recorded, self.validation):  # part of a checkpoint's own time
            for name in [name for name in seconds if name.endswith(".on_save_checkpoint")]:
                del seconds[name]
        self.parts = self.stages.parts(self.seconds - self.evaluation)
        self.training = {name: sum(times) for name, times in recorded.items()}
