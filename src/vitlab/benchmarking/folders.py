"""A folder of JPEG files as training batches, float32 and normalised: by our data module, torchvision and timm.

Everyone reads all files below `folder`/train. Of a data set that is larger, some are linked into a folder of their own.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.image_folder import class_folders, list_images
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD, Source, Split

Interpolation = Literal["bilinear", "bicubic"]
SUFFIXES = (".jpg", ".jpeg")


def linked(found: Path, folder: Path, images: int) -> None:
    """Links in `folder`/train to `images` JPEG files of `found`/train: of as many classes as can be, equally many of
    each, where it has so many. Raises `ValueError` where these are not two classes.
    """
    chance = random.Random(0)
    classes = {name: jpeg_files(found / "train" / name) for name in class_folders(found / "train")}
    classes = {name: files for name, files in classes.items() if files}
    if len(classes) < 2:
        raise ValueError(
            f"loading.folder={found}: {found}/train has JPEG files in {len(classes)} class folders, and two are needed"
        )
    rows = [[(name, file) for file in chance.sample(files, len(files))] for name, files in classes.items()]
    chance.shuffle(rows)
    turns = (each for each in chain.from_iterable(zip_longest(*rows)) if each is not None)
    for number, (name, file) in enumerate(islice(turns, images)):
        place = folder / "train" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").symlink_to(file.absolute())


def jpeg_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file())


@dataclass(frozen=True, kw_only=True)
class JpegFolder:
    """The loaders of `folder`/train, each of them in one thread of a process; sides in pixels."""

    folder: Path
    image_size: int
    batch_size: int
    workers: int
    interpolation: Interpolation = "bilinear"
    scaled_decoding: bool = False  # of ours

    @property
    def files(self) -> list[Path]:
        """Raises `ValueError` where they don't fill a batch: timm's loader would yield none."""
        found = jpeg_files(self.folder / "train")
        if len(found) < self.batch_size:
            raise ValueError(
                f"loading.batch_size={self.batch_size} must be at most the {len(found)} files of the folder"
            )
        return found

    def vitlab(self) -> "Prepared":
        data = DataModule(
            source=partial(all_to_train, self.folder),
            augment=Augment(flip=True),
            image_size=self.image_size,
            batch_size=self.batch_size,
            seed=0,
            num_workers=self.workers,
            scan="none",
            interpolation=self.interpolation,
            scaled_decoding=self.scaled_decoding,
        )
        data.setup()
        return Prepared(data)

    def torchvision(self, *, pillow: bool) -> Any:
        """torchvision's `references/classification`, on PIL images, or on tensors decoded by torchvision."""
        interpolation = v2.InterpolationMode(self.interpolation)
        steps: list[Callable[..., Any]] = [v2.RandomResizedCrop(self.image_size, interpolation=interpolation)]
        steps += [v2.RandomHorizontalFlip(), *([v2.PILToTensor()] if pillow else [])]
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        options = {} if pillow else {"loader": decoded_by_torchvision}
        return DataLoader(
            datasets.ImageFolder(str(self.folder / "train"), v2.Compose(steps), **options),
            batch_size=self.batch_size,
            shuffle=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def timm(self) -> Any:
        """timm's, without color jitter, and without its prefetcher, which is for GPUs."""
        from timm.data.dataset_factory import create_dataset
        from timm.data.loader import create_loader

        return create_loader(
            create_dataset("", root=str(self.folder), split="train", is_training=True),
            self.image_size,
            self.batch_size,
            is_training=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            use_prefetcher=False,
            color_jitter=0.0,
            interpolation=self.interpolation,
            device=torch.device("cpu"),
        )


class Prepared:
    """A data module's training batches as the network sees them, without a Trainer: each pass is the next epoch."""

    def __init__(self, data: DataModule) -> None:
        self.epoch = -1
        data.position = lambda: (self.epoch, 0)  # type: ignore[method-assign]  # the Trainer's, otherwise
        self.data, self.loader = data, data.train_dataloader()

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        return (self.data.on_after_batch_transfer(batch, 0) for batch in self.loader)


def all_to_train(folder: Path) -> Source:
    """All files to train on; nothing here is validated or tested."""
    names, files, labels = list_images(folder / "train", None, None)
    split = Split(None, torch.tensor(labels), files)
    return Source("image_folder", tuple(names), 3, IMAGENET_MEAN, IMAGENET_STD, None, split, test=split, val=split)


def decoded_by_torchvision(file: str) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image, read_file

    image: Tensor = decode_image(read_file(file), mode=ImageReadMode.RGB)
    return image
