"""Images a second of the data path, in one thread: batches as the network sees them, float32 and normalised.

    in memory      our batched augmentation beside torchvision's transforms of one image after another, on tensors and
                   on PIL images
    JPEG folders   our data module beside torchvision's ImageFolder as in its examples, the same with torchvision.io
                   and uint8 tensors, and timm's loader; a call is a pass over all files

The files are cut out of the two photographs that scikit-learn has, unless a folder is named.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import v2

from vitlab.benchmarking.cores import cpu_seconds
from vitlab.benchmarking.folders import Interpolation, JpegFolder, linked
from vitlab.benchmarking.quality import quality
from vitlab.benchmarking.timing import OURS, Case, Clock, Contender, Goal, Part, demand, too_small
from vitlab.data.augment import Augment, Prepare
from vitlab.data.dataset import MemoryDataset
from vitlab.data.decode import quiet
from vitlab.data.sampler import BatchPlan
from vitlab.data.sets.digits import digits
from vitlab.data.sets.fake import fake
from vitlab.data.source import Source, Split

Recipe = Literal["digits", "cifar", "cifar randaugment", "cifar trivialaugment"]
RECIPES: tuple[Recipe, ...] = ("digits", "cifar", "cifar randaugment", "cifar trivialaugment")
PIL_PEER, TENSOR_PEER = "torchvision, PIL", "torchvision, tensors"
BILINEAR = v2.InterpolationMode.BILINEAR
PER_CORE, CPU_MS = "images a core second", "CPU ms an image"  # figures: by the time on all processors together
TEST_FILES = 8  # of ours: a data module wants a test split


class Loading(Part):
    """recipes          of augmentation, for sets in memory
    batch_memory     images of a batch of these
    folder           of JPEG files, in ImageNet's layout; None: files are made, of 500 x 375 pixels
    images           so many files, made, or taken from the classes in turns
    image_size       of a crop of these, a side in pixels
    batch_size       images of a batch of these
    workers          loading processes, each number a case
    interpolations   how everyone resizes, each a case without workers; with workers it is the first
    scaled_decoding  ours as with `data.scaled_decoding=true`; the others decode at full scale
    """

    def __init__(
        self,
        *,
        recipes: tuple[Recipe, ...] = RECIPES,
        batch_memory: int = 512,
        folder: str | None = None,
        images: int = 256,
        image_size: int = 224,
        batch_size: int = 32,
        workers: tuple[int, ...] = (0, 1),
        interpolations: tuple[Interpolation, ...] = ("bilinear", "bicubic"),
        scaled_decoding: bool = False,
    ) -> None:
        found = [*too_small("loading", 1, batch_memory=batch_memory, image_size=image_size, batch_size=batch_size)]
        found += too_small("loading", 20, images=images)
        if 20 <= images < batch_size:
            found.append(f"loading.images={images} must be at least loading.batch_size={batch_size}")
        if any(count < 0 for count in workers):
            found.append(f"loading.workers={list(workers)} must be at least 0 each")
        if folder is not None and not Path(folder, "train").is_dir():
            found.append(f"loading.folder={folder} has no folder train/ of classes")
        demand(found)
        self.recipes, self.batch_memory, self.folder, self.images = recipes, batch_memory, folder, images
        self.image_size, self.batch_size, self.workers = image_size, batch_size, workers
        self.interpolations, self.scaled_decoding = interpolations, scaled_decoding

    def cases(self, clock: Clock) -> Iterator[Case]:
        clock = Clock(rounds=clock.rounds, seconds=clock.seconds)  # all of it is done by the CPU
        with one_thread(), quiet():  # torchvision warns of each image
            for recipe in self.recipes:
                yield in_memory(clock, recipe, self.batch_memory)
            with ExitStack() as stack:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="vitlab-loading-")))
                if self.folder is not None:
                    linked(Path(self.folder), folder, self.images)
                elif self.workers:
                    photographs(folder, self.images)
                for workers in self.workers:
                    for interpolation in self.interpolations[: 1 if workers else None]:
                        loaders = JpegFolder(
                            folder=folder,
                            image_size=self.image_size,
                            batch_size=self.batch_size,
                            workers=workers,
                            interpolation=interpolation,
                            scaled_decoding=self.scaled_decoding,
                        )
                        yield self.from_folder(clock, loaders)

    def from_folder(self, clock: Clock, loaders: JpegFolder) -> Case:
        files = [str(file) for file in loaders.files]
        contestants = {
            OURS: loaders.vitlab(),
            PIL_PEER: loaders.torchvision(pillow=True),
            "torchvision.io, tensors": loaders.torchvision(pillow=False),
            "timm": loaders.timm(),
        }
        figures = {OURS: quality(files, self.image_size, loaders.interpolation, scaled=self.scaled_decoding)}
        contenders = [passes(name, loader, figures.get(name, {})) for name, loader in contestants.items()]
        size = sum(Path(file).stat().st_size for file in files) / len(files) / 1024
        name = f"{len(files)} JPEG files of {size:.0f} KiB, {loaders.interpolation} crops of {self.image_size}"
        workers = f"{loaders.workers} worker{'' if loaders.workers == 1 else 's'}"
        # with workers, several processes share the work, and not everyone shares it alike
        goals = [Goal(least=2.0, against=PIL_PEER, figure=CPU_MS if loaders.workers else None)]
        return Case(
            part="loading",
            name=f"{name}{', scaled decoding' if self.scaled_decoding else ''}, {workers}",
            unit="images",
            measured=clock.measure(contenders),
            goals=goals,
        )


def passes(name: str, loader: Any, known: Mapping[str, float]) -> Contender:
    """A call is a pass over the loader. Besides what is `known`, its figures are what it takes of processors."""
    figures, spent = dict(known), list[float]()
    images = pass_over(loader)  # starts the workers

    def run() -> None:
        before = cpu_seconds()
        pass_over(loader)
        after = cpu_seconds()
        if before is not None and after is not None:
            spent.append((after - before) / images)
            figures[PER_CORE], figures[CPU_MS] = 1 / median(spent), 1000 * median(spent)

    return Contender(name=name, run=run, items=images, figures=figures)


def pass_over(loader: Any) -> int:
    """How many images came: timm's loader leaves out an incomplete batch."""
    return sum(len(batch[0]) for batch in loader)


def in_memory(clock: Clock, recipe: Recipe, batch: int) -> Case:
    """The training batches of a set in memory, by one of the recipes of `conf/data`."""
    source = digits() if recipe == "digits" else fake(samples=batch, test_samples=10, size=32)
    split = source.train.subset(torch.arange(min(batch, len(source.train))))
    ours, theirs, mixer = recipes(recipe, source)
    prepare = Prepare(image_size=(source.native_size or 0,) * 2, mean=source.mean, std=source.std)
    held, plan = MemoryDataset(split, training=True), BatchPlan(0, 0, list(range(len(split))), len(split))

    def batched() -> None:
        loaded = held.__getitems__(plan)
        ours(loaded.images, loaded.targets, prepare=prepare, num_classes=len(source.classes))

    contenders = [Contender(name=OURS, run=batched, items=len(split))]
    for name, pillow in ((TENSOR_PEER, False), (PIL_PEER, True)):
        samples = one_by_one(split, theirs, source, pillow=pillow)

        def per_sample(samples: Callable[[], Any] = samples) -> None:
            images, targets = samples()
            if mixer is not None:
                mixer(images, targets)

        contenders.append(Contender(name=name, run=per_sample, items=len(split)))
    name = f"in memory, {recipe}, {source.native_size} px, {len(split)} images"
    measured = clock.measure(contenders)
    return Case(part="loading", name=name, unit="images", measured=measured, goals=[Goal(least=10.0)])


def recipes(recipe: Recipe, source: Source) -> tuple[Augment, list[Callable[..., Any]], Callable[..., Any] | None]:
    """Ours, torchvision's for one image, and for a batch."""
    if recipe == "digits":
        ours = Augment(degrees=8.0, translate=0.04, scale=(0.95, 1.05), shear=4.0, mixup=0.4)
        warp = v2.RandomAffine(8.0, (0.04, 0.04), (0.95, 1.05), 4.0, interpolation=BILINEAR)
        return ours, [warp], v2.MixUp(alpha=0.4, num_classes=len(source.classes))
    crop: list[Callable[..., Any]] = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    if recipe == "cifar randaugment":
        ours = Augment(crop_padding=4, flip=True, auto_augment="randaugment")
        return ours, [*crop, v2.RandAugment(interpolation=BILINEAR)], None
    if recipe == "cifar trivialaugment":
        ours = Augment(crop_padding=4, flip=True, auto_augment="trivialaugment")
        return ours, [*crop, v2.TrivialAugmentWide(interpolation=BILINEAR)], None
    return Augment(crop_padding=4, flip=True), crop, None


def one_by_one(
    split: Split, steps: Sequence[Callable[..., Any]], source: Source, *, pillow: bool
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Each image by itself through the steps, then into a batch, as a DataLoader without workers does."""
    assert split.images is not None
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(source.mean, source.std)]
    vary = v2.Compose([*steps, *([v2.PILToTensor()] if pillow else []), *last])
    images: list[Any] = [v2.functional.to_pil_image(image) for image in split.images] if pillow else list(split.images)

    def batch() -> tuple[Tensor, Tensor]:
        made: tuple[Tensor, Tensor] = default_collate(
            [(vary(image), label) for image, label in zip(images, split.labels.tolist(), strict=True)]
        )
        return made[0], made[1]

    return batch


@contextmanager
def one_thread() -> Iterator[None]:
    """A core is what is measured."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def photographs(folder: Path, count: int) -> None:
    """JPEG files of two classes and 500 x 375 pixels, quality 90 to 95: cuts of a photograph each, some mirrored."""
    from sklearn.datasets import load_sample_image

    chance = random.Random(0)
    for label, name in enumerate(("china.jpg", "flower.jpg")):
        photo = Image.fromarray(load_sample_image(name))
        for split, files in (("train", (count + 1 - label) // 2), ("val", TEST_FILES)):
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for number in range(files):
                width = chance.randint(400, 560)
                height = width * 3 // 4
                left, top = chance.randint(0, photo.width - width), chance.randint(0, photo.height - height)
                image = photo.crop((left, top, left + width, top + height)).resize((500, 375), Image.Resampling.LANCZOS)
                if chance.random() < 0.5:
                    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                image.save(place / f"{number}.jpg", quality=chance.choice((90, 95)), subsampling=2)
