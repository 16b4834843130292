"""Measure loading and augmentation in one thread, to normalized float32 batches.

in memory      vitlab's batched augmentation; torchvision's image by image, on tensors and on PIL images
JPEG files     loaders of vitlab, torchvision (PIL images, tensors) and timm; a call is a pass over all files
"""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch.utils.data import default_collate
from torchvision.transforms import v2

from benchmark.case import OURS, Case, Part
from benchmark.jpeg_folder import loaders, write_photographs
from benchmark.timing import Clock, Contender
from vitlab.data.augment import Augment, Prepare
from vitlab.data.dataset import MemoryDataset
from vitlab.data.decode import quiet
from vitlab.data.sampler import BatchPlan
from vitlab.data.sets.digits import digits
from vitlab.data.sets.fake import fake

Recipe = Literal["digits", "cifar", "cifar randaugment"]
MEMORY_BATCH = 512
PER_CORE, CPU_MS = "images a core second", "CPU ms an image"  # figures, by the CPU time of all processes
BILINEAR = v2.InterpolationMode.BILINEAR
CROP = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
# vitlab's settings, and torchvision's transforms of an image; Mixup, of a batch, comes after them.
RECIPES: dict[Recipe, tuple[dict[str, Any], list[Callable[..., Any]]]] = {
    "digits": (
        {"degrees": 8.0, "translate": 0.04, "scale": (0.95, 1.05), "shear": 4.0, "mixup": 0.4},
        [v2.RandomAffine(8.0, (0.04, 0.04), (0.95, 1.05), 4.0, interpolation=BILINEAR)],
    ),
    "cifar": ({"crop_padding": 4, "flip": True}, CROP),
    "cifar randaugment": (
        {"crop_padding": 4, "flip": True, "auto_augment": "randaugment"},
        [*CROP, v2.RandAugment(interpolation=BILINEAR)],
    ),
}


@dataclass(kw_only=True)
class Loading(Part):
    """Images per second and core, in memory and from JPEG files.

    Args:
        recipes: Augmentation recipes for images in memory.
        images: Number of JPEG files of 500 x 375 pixels.
        image_size: Height and width of their crops in pixels.
        batch_size: Batch size of JPEG files.
        workers: Numbers of loading processes, a case each.
    """

    part = "loading"

    recipes: tuple[Recipe, ...] = tuple(RECIPES)
    images: int = 256
    image_size: int = 224
    batch_size: int = 32
    workers: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        if self.images < self.batch_size:  # timm's loader would drop the incomplete batch
            raise ValueError(f"loading.images={self.images} must be at least loading.batch_size={self.batch_size}")

    def cases(self, clock: Clock) -> Iterator[Case]:
        clock = Clock(rounds=clock.rounds, seconds=clock.seconds)  # loading runs on the CPU
        with ExitStack() as stack:
            folder = stack.enter_context(TemporaryDirectory())
            stack.enter_context(quiet())  # torchvision's warnings
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
            for recipe in self.recipes:
                yield memory_case(clock, recipe)
            write_photographs(Path(folder), self.images)
            for workers in self.workers:
                by_name = loaders(Path(folder), self.image_size, self.batch_size, workers)
                measured = clock.measure([loader_contender(name, loader) for name, loader in by_name.items()])
                name = f"JPEG files, {self.images}, crops of {self.image_size}, workers: {workers}"
                yield Case(part=self.part, name=name, measured=measured)


def memory_case(clock: Clock, recipe: Recipe) -> Case:
    """Augment a batch of images in memory by one of the recipes of `conf/data`."""
    source = digits() if recipe == "digits" else fake(samples=MEMORY_BATCH, test_samples=10, size=32)
    split = source.train.subset(torch.arange(MEMORY_BATCH))
    assert split.images is not None
    (options, steps), classes = RECIPES[recipe], len(source.classes)
    augment, mixup = Augment(**options), v2.MixUp(alpha=0.4, num_classes=classes)
    prepare = Prepare(image_size=(source.native_size or 0,) * 2, mean=source.mean, std=source.std)
    data, plan = MemoryDataset(split, training=True), BatchPlan(0, 0, list(range(len(split))), len(split))

    def augment_batch() -> None:
        loaded = data.__getitems__(plan)
        augment(loaded.images, loaded.targets, prepare=prepare, num_classes=classes)

    def augment_images(images: list[Any], transform: v2.Compose) -> None:
        samples = zip(images, split.labels.tolist(), strict=True)
        batch = default_collate([(transform(image), label) for image, label in samples])
        if "mixup" in options:
            mixup(*batch)

    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(source.mean, source.std)]
    pillow = [v2.functional.to_pil_image(image) for image in split.images]
    runs: dict[str, Callable[[], None]] = {
        OURS: augment_batch,
        "torchvision, tensors": partial(augment_images, list(split.images), v2.Compose([*steps, *last])),
        "torchvision, PIL": partial(augment_images, pillow, v2.Compose([*steps, v2.PILToTensor(), *last])),
    }
    measured = clock.measure([Contender(name=name, run=run, items=len(split)) for name, run in runs.items()])
    return Case(part=Loading.part, name=f"in memory, {recipe}, {source.native_size} px", measured=measured)


def loader_contender(name: str, loader: Any) -> Contender:
    """A contender whose calls are passes over the loader; figures: its CPU time."""
    figures, spent = dict[str, float](), list[float]()
    images = count_images(loader)  # starts the workers

    def run() -> None:
        before = cpu_seconds()
        count_images(loader)
        after = cpu_seconds()
        if before is not None and after is not None:
            spent.append((after - before) / images)
            figures[PER_CORE], figures[CPU_MS] = 1 / median(spent), 1000 * median(spent)

    return Contender(name=name, run=run, items=images, figures=figures)


def count_images(loader: Any) -> int:
    return sum(len(batch[0]) for batch in loader)


def cpu_seconds() -> float | None:
    """CPU time of this process and its living `multiprocessing` children; None except on Linux.

    Images per second don't show how many cores were busy.
    """
    if sys.platform != "linux":
        return None
    # another process's clock id, as clock_getcpuclockid(3) computes it
    clocks = (~child.pid << 3 | 2 for child in multiprocessing.active_children() if child.pid is not None)
    return time.process_time() + sum(time.clock_gettime(clock) for clock in clocks)
