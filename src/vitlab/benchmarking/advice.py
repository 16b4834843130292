"""What `src/doctor.py` predicts of a change, beside what the change does: on JPEG files that are slow to decode, on
such that RandAugment varies, and on images in memory.

A prediction has to be as near to the measured gain as a tenth of that, or as the rounds are to each other.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from vitlab import advising, optim
from vitlab.benchmarking.images import photographs
from vitlab.benchmarking.scaling import HEAD, PATCH
from vitlab.benchmarking.timing import Case, Clock, Goal, Measured, Part, demand, too_small
from vitlab.classifier import Classifier
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.fake import fake
from vitlab.data.sets.image_folder import image_folder
from vitlab.data.source import Source
from vitlab.models.vit import VisionTransformer
from vitlab.schema import Node

# Without compile: it takes minutes, and all that it changes is timed before it is predicted.
KINDS: tuple[Change, ...] = ("num_workers", "precision", "batch_size", "log_every_n_steps", "auto_augment", "smaller")
WITHIN = 0.1  # of the measured gain: so far off may a prediction be, or as far as the quartiles are apart
PREDICTED, MEASURED, OFF, ALLOWED = "predicted gain", "measured gain", "off by", "allowed"
GOAL = Goal(
    least=1.0,
    ours="changed",
    figure=OFF,
    allowed=ALLOWED,
    words=f"predicted within {WITHIN:.0%} of the measured gain, or within its quartiles' distance",
    found=(
        f"predicted {{{PREDICTED}:.2f}}, measured {{{MEASURED}:.2f}}, off by {{{OFF}:.3f}} of {{{ALLOWED}:.3f}} allowed"
    ),
)


class Advice(Part):
    """sets          JPEG files of 500 x 375, or these with RandAugment (only leaving that out is tried), or in memory
    images        in a set
    steps         that each training lasts, in each of `rounds`
    batch_size    images of a step
    workers       loading processes that are tried; the doctor's own choice where None
    """

    def __init__(
        self,
        *,
        sets: tuple[Literal["jpeg", "randaugment", "memory"], ...] = ("jpeg", "randaugment", "memory"),
        images: int = 512,
        image_size: int = 96,
        batch_size: int = 32,
        steps: int = 12,
        rounds: int = 5,
        dim: int = 128,
        depth: int = 4,
        workers: tuple[int, ...] | None = None,
        changes: tuple[Change, ...] = KINDS,
    ) -> None:
        counts = {"batch_size": batch_size, "steps": steps, "rounds": rounds, "dim": dim, "depth": depth}
        found = [*too_small("advice", 1, **counts)]
        if images < 4 * batch_size:
            found.append(f"advice.images={images} must be at least 4 x advice.batch_size={batch_size}")
        if image_size < PATCH or image_size % PATCH:
            nearest = max(PATCH, round(image_size / PATCH) * PATCH)
            found.append(f"advice.image_size={image_size} is not cut into patches of {PATCH}; use {nearest}")
        if dim > HEAD and dim % HEAD:
            nearest = round(dim / HEAD) * HEAD
            found.append(f"advice.dim={dim} is not a multiple of {HEAD}, the width of a head; use {nearest}")
        if any(count < 0 for count in workers or ()):
            found.append(f"advice.workers={list(workers or ())} must be at least 0 each")
        demand(found)
        self.sets, self.images, self.image_size, self.batch_size = sets, images, image_size, batch_size
        self.steps, self.rounds, self.dim, self.depth = steps, rounds, dim, depth
        self.workers, self.changes = workers, changes

    def cases(self, clock: Clock) -> Iterator[Case]:
        for kind in self.sets:
            with TemporaryDirectory(prefix="vitlab-advice-") as folder:
                yield from self.compared(kind, Path(folder), "gpu" if clock.device.type == "cuda" else "cpu")

    def draw(self, cases: Sequence[Case], folder: Path) -> None:
        if cases:
            picture(cases, folder / "advice.png")

    def compared(self, kind: str, folder: Path, accelerator: str) -> Iterator[Case]:
        """A case for each change: as configured (no workers), and changed; the figures have both gains."""
        patient = self.patient(kind, folder, accelerator)
        cost, _, _ = advising.examine(patient, steps=self.steps, warmup=4)
        if kind == "jpeg" and "smaller" in self.changes:
            patient.smaller = smaller(patient, folder / "smaller")
        timing: dict[str, int] = {"rounds": self.rounds, "steps": self.steps, "warmup": 4}
        asked = [change for change in self.changes if kind != "randaugment" or change == "auto_augment"]
        trials, rates, _ = advising.compared(patient, cost, asked, self.workers, **timing)
        for trial in trials:
            if trial.gains:
                yield case(f"{kind}, {trial.variant}", trial, rates)

    def patient(self, kind: str, folder: Path, accelerator: str) -> Patient:
        source: Callable[[], Source]
        if kind != "memory":
            photographs(folder, self.images)
            source = partial(image_folder, data_dir=str(folder))
        else:
            source = partial(
                fake,
                samples=self.images,
                test_samples=self.batch_size,
                size=self.image_size,
                num_classes=2,
            )
        data = DataModule(
            source=source,
            augment=Augment(flip=True, auto_augment="randaugment" if kind == "randaugment" else "none"),
            image_size=self.image_size,
            batch_size=self.batch_size,
            seed=0,
            num_workers=0,
        )
        data.setup()
        torch.manual_seed(0)
        network = VisionTransformer(
            image_size=self.image_size,
            patch_size=PATCH,
            in_channels=data.channels,
            num_classes=data.num_classes,
            dim=self.dim,
            depth=self.depth,
            heads=max(1, self.dim // HEAD),
        )
        adamw = partial(torch.optim.AdamW, lr=1e-3, fused=True)
        module = Classifier(network, num_classes=data.num_classes, optimizer=adamw, schedule=optim.constant)
        trainer = {"_target_": "lightning.Trainer", "accelerator": accelerator, "devices": 1, "precision": "32-true"}
        trainer |= {"accumulate_grad_batches": 1, "log_every_n_steps": 10, "gradient_clip_val": 1.0}
        trainer |= {"enable_model_summary": False, "use_distributed_sampler": False}
        callbacks: dict[str, Node | None] = {"monitor": {"_target_": "vitlab.callbacks.Monitor"}}
        return Patient(datamodule=data, module=module, trainer=trainer, callbacks=callbacks)


def case(name: str, trial: Trial, rates: Sequence[float]) -> Case:
    """Seconds of an image; gains as figures, and how far off the prediction is and may be."""
    guess, gain = trial.predicted or 0.0, trial.measured or 0.0
    figures = {PREDICTED: guess, MEASURED: gain, OFF: abs(guess - gain), ALLOWED: max(WITHIN * gain, trial.spread)}
    own = tuple(1 / rate for rate in rates)
    changed = tuple(1 / (rate * gain) for rate, gain in zip(rates, trial.gains, strict=True))
    measured = [
        Measured(name=who, seconds=seconds, calls=1, items=1, peer=True, figures=known)
        for who, seconds, known in (("as configured", own, dict[str, float]()), ("changed", changed, figures))
    ]
    return Case(part="advice", name=name, unit="images", measured=measured, goals=[GOAL])


def picture(cases: Sequence[Case], file: Path) -> None:
    """For each change two bars: the gain that was predicted, and what it was, with what a prediction may be off by."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.6 + 0.5 * len(cases)), layout="constrained")
    axis = figure.subplots()
    changed = [case["changed"].figures for case in cases]
    places = range(len(cases))
    for name, shift, colour in ((PREDICTED, -0.2, "C1"), (MEASURED, 0.2, "C0")):
        off = [figures[ALLOWED] for figures in changed] if name == MEASURED else None
        axis.barh(
            [place + shift for place in places],
            [figures[name] for figures in changed],
            xerr=off,
            height=0.4,
            color=colour,
            label=f"{name} (whiskers: what the prediction may be off by)" if off else name,
        )
    axis.axvline(1, color="0.6", linestyle="--")
    axis.set_yticks(places, [case.name for case in cases], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("images a second, times as many as configured")
    axis.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(file, dpi=110)
