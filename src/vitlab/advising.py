"""What holds a training back, what to change, and what that gives: predicted from parts, and compared with the change.

    profile without workers: seconds of each part of a step     images made by one process, and by one on each core
        `-> model of a step:   main + reading                     without workers
                               the longest of main, reading / workers, all work / cores
        `-> for each change: predicted        and tried, in rounds with all others: measured, with a spread

`main` is what the loop's own process does. In another precision or size of batch its forward and backward pass are
scaled as those of the bare network are, which is timed on images made ready.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

import torch
from torch.nn import functional as F

from vitlab import flops, launch
from vitlab.benchmarking.timing import Clock, Contender, between_quartiles, turns
from vitlab.data.datamodule import MOST_WORKERS
from vitlab.profiling import PARTS, STEP, Patient, Stages, Timed, Variant, shares

log = logging.getLogger(__name__)

Change = Literal["num_workers", "precision", "batch_size", "log_every_n_steps", "compile", "auto_augment", "smaller"]
NOISE = 0.03  # of a gain: less is never called one
WORTH = 0.1  # of the time: a part that takes less isn't spoken of


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the model knows, in seconds of an optimizer step."""

    parts: dict[str, float]  # in a loop without workers
    rows: float  # of a row of the log, beyond an ordinary step's end
    sent: float  # images made by one worker, and nothing beside it
    together: float  # how many times as fast they are made by `beside` workers; two threads of a core are no two cores
    beside: int  # a worker on each core, as far as a training starts so many
    workers: int  # as configured
    cores: int
    threads: int  # cores that the loop's process keeps busy
    every: int  # steps from row to row

    def power(self, busy: int) -> float:
        """What so many busy processes do, in units of one alone."""
        more = min(busy, self.cores) - 1
        return 1 + (self.together - 1) * more / (self.beside - 1) if self.beside > 1 else 1.0


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a change multiplies: forward and backward, the images of a step, an image's reading (with what varies it
    there), and its augmentation in the loop.
    """

    step: float = 1.0
    images: float = 1.0
    reading: float = 1.0
    augmentation: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A change, predicted and measured: images a second, as a multiple of what is configured."""

    variant: Variant
    predicted: float | None
    gains: tuple[float, ...]  # of each round; none: it failed, and `why` says how
    why: str = ""

    @property
    def measured(self) -> float | None:
        return median(self.gains) if self.gains else None

    @property
    def spread(self) -> float:
        """The distance between the quartiles of the rounds."""
        return between_quartiles(self.gains)

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return self.why
        if abs(self.measured - 1) <= max(self.spread, NOISE):
            return "within noise"
        return "faster" if self.measured > 1 else "slower"


def seconds(cost: Cost, variant: Variant, scale: Scale | None = None) -> float:
    """The model: seconds of an optimizer step."""
    scale = scale or Scale()
    parts, workers = cost.parts, cost.workers if variant.num_workers is None else variant.num_workers
    every = variant.log_every_n_steps or cost.every
    rows = cost.rows * (1 / every - 1 / cost.every)
    main = (parts["forward"] + parts["backward"]) * scale.step + parts["optimizer"] + parts["loop"]
    main += (parts["moving"] + parts["augmentation"] * scale.augmentation) * scale.images
    main += max(0.0, parts["callbacks"] + rows)
    factor = scale.images * scale.reading
    if workers == 0:
        return main + (parts["reading"] + parts["varying"]) * factor
    sent = cost.sent * factor
    busy = cost.threads + workers
    return max(main, sent / cost.power(workers), sent / workers, (main * cost.threads + sent) / cost.power(busy))


def predicted(cost: Cost, variant: Variant, scale: Scale) -> float:
    """Images a second, as a multiple of what the model says of the configuration."""
    return scale.images * seconds(cost, Variant()) / seconds(cost, variant, scale)


def examine(patient: Patient, *, steps: int, warmup: int) -> tuple[Cost, Timed, dict[str, float]]:
    """What parts cost, the configuration's own training, watched, and the shares of a step that its parts have."""
    # what is done once is done now: memory, kernels, a peak that is measured
    patient.train(Variant(), steps=1, warmup=1)
    device = patient.device
    flops.peak_flops(device, str(patient.trainer["precision"]))
    varying = patient.varying(batches=max(2, steps // 4))
    stages = Stages(device, varying=varying)
    timed, window = patient.train(Variant(), steps=steps, warmup=warmup, stages=stages)
    found = shares(window.parts)
    if timed.workers:
        stages = Stages(device, varying=varying)
        _, window = patient.train(Variant(num_workers=0), steps=steps, warmup=warmup, stages=stages)
    cores = launch.cores()
    beside = min(cores, MOST_WORKERS)
    every = int(patient.trainer["log_every_n_steps"])
    batches = max(4, steps // 2)
    sent = patient.reading(Variant(num_workers=1), batches=batches)
    side_by_side = patient.reading(Variant(num_workers=beside), batches=batches * beside)
    cost = Cost(
        parts={name: value / steps for name, value in window.parts.items()},
        rows=window.rows / max(1, steps // every),
        sent=sent,
        together=min(float(beside), max(1.0, sent / side_by_side)),
        beside=beside,
        workers=timed.workers,
        cores=cores,
        threads=torch.get_num_threads() if device.type == "cpu" else 1,
        every=every,
    )
    return cost, timed, found


def candidates(
    patient: Patient, cost: Cost, asked: Sequence[Change], workers: Sequence[int] | None
) -> list[tuple[Change, Variant]]:
    """The changes to be tried: of the kinds `asked`, those that differ from what is configured."""
    found: list[tuple[Change, Variant]] = []
    counts = list(workers) if workers is not None else sorted({0, 1, 2, 4, 8, 16, cost.beside})
    if "num_workers" in asked:
        counts = [n for n in counts if n != cost.workers and (n <= cost.beside or workers is not None)]
        found += [("num_workers", Variant(num_workers=n)) for n in counts]
    if "precision" in asked and str(patient.trainer["precision"]) in ("32-true", "32", "None"):
        found.append(("precision", Variant(precision="bf16-mixed")))
    batch = patient.datamodule.batch_size
    if "batch_size" in asked and 2 * batch <= patient.datamodule.samples["train"]:
        found.append(("batch_size", Variant(batch_size=2 * batch)))
    if "log_every_n_steps" in asked and cost.every < 50:
        found.append(("log_every_n_steps", Variant(log_every_n_steps=50)))
    if "compile" in asked:
        found.append(("compile", Variant(compile=True)))
    if "auto_augment" in asked and patient.datamodule.augment.auto_augment != "none":
        found.append(("auto_augment", Variant(auto_augment="none")))
    if "smaller" in asked and patient.smaller is not None:
        found.append(("smaller", Variant(smaller=True)))
    return found


def scales(patient: Patient, chosen: Sequence[tuple[Change, Variant]], *, rounds: int) -> dict[str, Scale]:
    """What each change does to its own part, with nothing else beside it."""
    asked = {str(variant): variant for kind, variant in chosen if kind in ("precision", "batch_size", "compile")}
    found: dict[str, Scale] = {}
    if asked:
        clock = Clock(rounds=rounds, seconds=0.05, device=patient.device)
        batch = patient.datamodule.batch_size
        images = {name: (variant.batch_size or batch) / batch for name, variant in asked.items()}
        found = {name: Scale(step=more, images=more) for name, more in images.items()}  # what is too large to be timed
        timed = {name: variant for name, variant in asked.items() if fits(patient, variant)}
        variants = [Variant(), *timed.values()]
        measured = clock.measure([Contender(name=str(v), run=bare(patient, v)) for v in variants])
        for name, taken in zip(timed, measured[1:], strict=True):
            found[name] = Scale(step=taken.median / measured[0].median, images=images[name])
    for kind, variant in chosen:
        in_loop = kind == "auto_augment" and patient.datamodule.split("train").files is None
        if kind == "smaller" or (kind == "auto_augment" and not in_loop):
            alone, other = replace(variant, num_workers=0), Variant(num_workers=0)
            found[str(variant)] = Scale(reading=patient.reading(alone, batches=4) / patient.reading(other, batches=4))
        elif in_loop:
            clock = Clock(rounds=rounds, seconds=0.05, device=patient.device)
            runs = [Contender(name=str(v), run=patient.augmenting(v)) for v in (Variant(), variant)]
            before, after = clock.measure(runs)
            found[str(variant)] = Scale(augmentation=after.median / before.median)
    return found


def fits(patient: Patient, variant: Variant) -> bool:
    """Whether a pass of the network alone has room in the device's memory."""
    try:
        bare(patient, variant)()
    except torch.OutOfMemoryError:
        return False
    return True


def bare(patient: Patient, variant: Variant) -> Any:
    """A forward and backward pass of the network alone."""
    module = patient.compiled() if variant.compile else patient.module
    device = patient.device
    module.to(device)
    images, targets = (tensor.to(device) for tensor in patient.images(variant))
    precision = str(variant.precision or patient.trainer["precision"])
    low = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    own = next(module.network.parameters()).dtype
    images = images if low else images.to(own)

    def run() -> None:
        with torch.autocast(device.type, dtype=low, enabled=low is not None):
            loss = F.cross_entropy(module.network(images).float(), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        module.network.zero_grad()

    return run


def tried(
    patient: Patient, variants: Sequence[tuple[Variant, float | None]], *, rounds: int, steps: int, warmup: int
) -> tuple[list[Trial], list[float]]:
    """Trains in turns with what is configured, a round after the other. Each gain is that of one round: what disturbs
    the machine for longer disturbs both. Returns the trials, and the images a second as configured.
    """
    everyone = [Variant(), *(variant for variant, _ in variants)]
    rates: dict[str, list[float]] = {str(variant): [] for variant in everyone}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for variant in (everyone[index] for index in turns(len(everyone), number)):
            name = str(variant)
            if name in failed:
                continue
            try:
                rates[name].append(patient.train(variant, steps=steps, warmup=warmup)[0].rate)
            except torch.OutOfMemoryError:
                failed[name] = "out of memory"
    own = rates[str(Variant())]
    trials = []
    for variant, expected in variants:
        name = str(variant)
        gains = () if name in failed else tuple(r / o for r, o in zip(rates[name], own, strict=True))
        trials.append(Trial(variant=variant, predicted=expected, gains=gains, why=failed.get(name, "")))
    return trials, own


def compared(
    patient: Patient,
    cost: Cost,
    asked: Sequence[Change],
    workers: Sequence[int] | None,
    *,
    rounds: int,
    steps: int,
    warmup: int,
) -> tuple[list[Trial], list[float], dict[str, Scale]]:
    """All changes of the kinds `asked`, predicted and tried; the images a second as configured; each change's scale."""
    chosen = candidates(patient, cost, asked, workers)
    found = scales(patient, chosen, rounds=rounds)
    expected = [(v, predicted(cost, v, found.get(str(v), Scale()))) for _, v in chosen]
    trials, rates = tried(patient, expected, rounds=rounds, steps=steps, warmup=warmup)
    return trials, rates, found


def together(trials: Sequence[Trial]) -> Variant | None:
    """The best change of each kind that gains and leaves what is learnt alone, all at once; None where it is fewer than
    two. A larger batch is another training, and so is another augmentation.
    """
    best: dict[tuple[str, ...], Trial] = {}
    for trial in trials:
        kind = tuple(setting.partition("=")[0] for setting in trial.variant.settings())
        gains = trial.verdict == "faster" and not trial.variant.learns_otherwise
        if gains and (kind not in best or (trial.measured or 0) > (best[kind].measured or 0)):
            best[kind] = trial
    if len(best) < 2:
        return None
    whole = Variant()
    for trial in best.values():
        whole = whole.beside(trial.variant) if trial.variant.num_workers != 0 else replace(whole, num_workers=0)
    return whole


def combined(parts: Sequence[Scale]) -> Scale:
    """Several changes at once."""
    whole = Scale()
    for scale in parts:
        whole = Scale(**{name: value * getattr(scale, name) for name, value in vars(whole).items()})
    return whole


# What a part of a step is to a reader, and what helps where it takes long and no trial did.
NAMES = {
    "reading": "reading, decoding, cropping (waiting for it)",
    "varying": "augmentation of files as they are read",
    "moving": "moving to the device",
    "augmentation": "augmentation and normalisation in the loop",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "clipping and optimizer",
    "callbacks": "monitor, metrics.csv and callbacks",
    "loop": "the rest of the loop",
}
HELP = {
    "reading": "more loading processes (data.num_workers), smaller files (src/prepare.py), fewer pixels (image_size)",
    "varying": "more loading processes (data.num_workers), a lighter data.augment (auto_augment=none)",
    "moving": "larger batches, or another device's memory nearer to the data",
    "augmentation": "a lighter data.augment (auto_augment=none), or a GPU, on which it takes little",
    "forward": "trainer.precision=bf16-mixed, compile=true, a smaller model or image_size",
    "backward": "trainer.precision=bf16-mixed, compile=true, classifier.freeze, a smaller model or image_size",
    "optimizer": "larger batches: fewer steps; a fused optimizer (optimizer.fused=true)",
    "callbacks": "a rarer row (trainer.log_every_n_steps) and fewer callbacks",
    "loop": "larger batches: the loop's own work is that of a step, not of an image",
}


def bottleneck(found: dict[str, float]) -> str:
    """The part that takes most, with forward, backward and optimizer as one: `step`."""
    grouped = {name: share for name, share in found.items() if name not in STEP}
    grouped["step"] = sum(found[name] for name in STEP)
    return max(grouped, key=lambda name: grouped[name])


def crowded(cost: Cost, step: float) -> str:
    """That the network and what loads have no core each, where that takes much of a step (of so many seconds)."""
    if not cost.workers or cost.threads + cost.workers <= cost.cores or cost.sent <= WORTH * step:
        return ""
    cores = f"{cost.cores} cores" if cost.cores > 1 else "the only core"
    return (
        f"computing and loading (data.num_workers={cost.workers}) share {cores}: a batch takes a loading process "
        f"{1000 * cost.sent:.0f} ms, so a part of a step's {1000 * step:.0f} ms that looks like computing is loading"
    )


def advice(
    found: dict[str, float],
    trials: Sequence[Trial],
    *,
    evaluation: float,
    saving: float,
    step: float,
    epoch: int,
    packing: str = "",
    crowd: str = "",
) -> list[str]:
    """What to do, the largest gain first. evaluation, saving: seconds an epoch; step: of one; epoch: steps of one;
    packing: how files are made smaller; crowd: what `crowded` says.
    """
    told, worst = [], bottleneck(found)
    if worst == "step":
        told.append(f"the network holds it back: {sum(found[name] for name in STEP):.0%} of a step is computing")
    else:
        told.append(f"{NAMES[worst]} holds it back: {found[worst]:.0%} of a step")
    if crowd:
        told.append(crowd)
    gained = sorted((t for t in trials if t.verdict == "faster"), key=lambda t: -(t.measured or 0))
    for trial in gained:
        says = f", {trial.predicted:.2f} predicted" if trial.predicted is not None else ""
        change = str(trial.variant)
        if trial.variant.smaller and packing:
            change = " ".join([packing, *replace(trial.variant, smaller=False).settings()])
        other = "; another training: rate and schedule go with it" if trial.variant.batch_size else ""
        other += "; another training: augmentation decides what is learnt" if trial.variant.auto_augment else ""
        told.append(f"{change}: {trial.measured:.2f} times the images a second (measured{says}){other}")
    if not gained and trials:
        told.append("nothing that was tried gains more than the noise")
    for name in PARTS:
        if name not in STEP and found[name] > WORTH:
            told.append(f"{NAMES[name]} takes {found[name]:.0%}; what helps: {HELP[name]}")
    train = step * epoch
    if (share := evaluation / (train + evaluation + saving)) > WORTH:
        told.append(f"validation takes {share:.0%} of an epoch: trainer.check_val_every_n_epoch=N makes it 1/N of that")
    if (share := saving / (train + evaluation + saving)) > WORTH:
        told.append(f"saving takes {share:.0%} of an epoch: callbacks.last.every_n_epochs=N makes it 1/N of that")
    return told
