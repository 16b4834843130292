"""What images: every data set as one `Source` of a train and a test split, labels included.

Images lie in memory (small sets, uint8), or stay files (image folders) or rows of them (Hugging Face). Nothing is
resized, augmented or normalised here, and no validation set is cut: the published test split stays the test split.

Heavy libraries are imported inside the functions, because the configuration reads these signatures.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.data.rows import Rows

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Facts:
    """What is known of a data set before it is loaded; None where only loading tells."""

    native_size: int | None  # pixels of a side
    channels: int | None
    num_classes: int | None
    train_samples: int | None
    test_samples: int | None


FACTS: dict[str, Facts] = {
    "digits": Facts(8, 1, 10, 1437, 360),
    "mnist": Facts(28, 1, 10, 60_000, 10_000),
    "fashion_mnist": Facts(28, 1, 10, 60_000, 10_000),
    "cifar10": Facts(32, 3, 10, 50_000, 10_000),
    "cifar100": Facts(32, 3, 100, 50_000, 10_000),
    "image_folder": Facts(None, 3, None, None, None),
    "huggingface": Facts(None, 3, None, None, None),
    "shards": Facts(None, 3, None, None, None),
    "fake": Facts(None, None, None, None, None),
}


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels: either `images` uint8 [N, C, H, W] in memory, or `files`, paths or `Rows` of files."""

    images: "Tensor | None"
    labels: "Tensor"  # int64 [N]
    files: Sequence[str] | None = None

    def __post_init__(self) -> None:
        held = [part for part in (self.images, self.files) if part is not None]
        assert len(held) == 1, "a Split holds images or files, not both"
        assert len(held[0]) == len(self.labels), f"{len(held[0])} images, {len(self.labels)} labels"

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: "Tensor") -> "Split":
        """The samples at `indices` (int64 [n]), in that order."""
        images = None if self.images is None else self.images[indices]
        files: Sequence[str] | None = None
        if isinstance(self.files, Rows):
            files = self.files.subset(indices)
        elif self.files is not None:
            files = [self.files[i] for i in indices.tolist()]
        return Split(images, self.labels[indices], files)

    def digest(self) -> str:
        """Of labels and images, wherever the data set lies: images in memory count with every pixel, files with their
        folder and name, and rows of larger files with their sizes in bytes.
        """
        found = hashlib.blake2b(self.labels.contiguous().numpy().tobytes(), digest_size=16)
        if self.images is not None:
            found.update(self.images.contiguous().numpy().data)
        if isinstance(self.files, Rows):
            found.update(self.files.digest())
        else:
            for file in self.files or []:
                found.update(os.fsencode("/".join(Path(file).parts[-2:])))
        return found.hexdigest()

    @property
    def blocks(self) -> "Tensor | None":
        """What is streamed is read in blocks: the number of each sample's, int64 [N]. None: each is read alone."""
        return self.files.blocks if isinstance(self.files, Rows) else None


@dataclass(frozen=True, eq=False)
class Source:
    """A data set; `mean` and `std` are per channel, of train images scaled to [0, 1].

    `val` is a published split to validate on; where there is none, it is cut from train.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    native_size: int | None
    train: Split
    test: Split
    val: Split | None = None
    shuffle_buffer: int | None = 1000  # of what is read in blocks: among how many images a step's are drawn; all

    @property
    def splits(self) -> dict[str, Split]:
        """The published splits by name."""
        return {"train": self.train, **({"val": self.val} if self.val else {}), "test": self.test}

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            if len(split) == 0:
                raise ValueError(f"{self.name} has no images in its {name} split; put some there")
            for label in (int(split.labels.min()), int(split.labels.max())):
                if not 0 <= label < len(self.classes):
                    raise ValueError(
                        f"{self.name} has the label {label} in its {name} split, and {len(self.classes)} classes: "
                        f"labels are 0 to {len(self.classes) - 1}"
                    )


def stratified(labels: "Tensor", held_out: int | float, *, seed: int, knob: str) -> tuple["Tensor", "Tensor"]:
    """Cut indices (kept, held out), both sorted, with the shares of the classes kept.

    `held_out` is a number of samples, or a fraction in (0, 1). `knob` is what a ValueError names.
    """
    import torch
    from sklearn.model_selection import train_test_split

    if isinstance(held_out, float) and not 0.0 < held_out < 1.0:
        raise ValueError(f"{knob}={held_out:g} must lie between 0 and 1")
    try:
        kept, out = train_test_split(range(len(labels)), test_size=held_out, stratify=labels.numpy(), random_state=seed)
    except ValueError as error:
        counts = torch.bincount(labels)
        counts = counts[counts > 0]
        raise ValueError(
            f"{knob}={held_out:g} can't split {len(labels)} samples of {len(counts)} classes, the smallest "
            f"of {int(counts.min())}, with every class on both sides: {error}; change {knob} or give every "
            f"class more images"
        ) from error
    return torch.tensor(sorted(kept)), torch.tensor(sorted(out))


def digits() -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (UCI, test part of Optical Recognition).

    The set has no published split: a fixed stratified fifth (360 images, seed 0) is the test split, for
    good. Grey values 0..16 become 0..255, rounded.
    """
    import torch
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (torch.from_numpy(data.images) * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(data.target).long()
    train, test = stratified(labels, 360, seed=0, knob="test samples of digits")
    everything = Split(images, labels)
    classes = tuple(str(name) for name in data.target_names)
    return Source("digits", classes, 1, (0.3054,), (0.3760,), 8, everything.subset(train), everything.subset(test))


def mnist(*, data_dir: str) -> Source:
    """MNIST (LeCun et al., 1998): idx files under `data_dir`, else downloaded there."""
    from vitlab.data.published import load_idx

    folders = [Path(data_dir, "mnist"), Path(data_dir, "MNIST", "raw"), Path(data_dir)]
    classes = tuple(str(digit) for digit in range(10))
    train, test = load_idx("mnist", "MNIST", data_dir, folders)
    return Source("mnist", classes, 1, (0.1307,), (0.3081,), 28, Split(*train), Split(*test))


def fashion_mnist(*, data_dir: str) -> Source:
    """Fashion-MNIST (Xiao et al., 2017): idx files under `data_dir` or from Debian, else downloaded."""
    from vitlab.data.published import load_idx

    folders = [Path(data_dir, "fashion_mnist"), Path(data_dir, "FashionMNIST", "raw"), Path(data_dir)]
    folders.append(DEBIAN_FASHION_MNIST)
    clothes = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
    others = ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    debian = ", or install Debian's package dataset-fashion-mnist"
    train, test = load_idx("fashion_mnist", "FashionMNIST", data_dir, folders, other_way=debian)
    return Source("fashion_mnist", clothes + others, 1, (0.2860,), (0.3530,), 28, Split(*train), Split(*test))


def cifar10(*, data_dir: str) -> Source:
    """CIFAR-10 (Krizhevsky, 2009): `data_dir`/cifar-10-batches-py, else downloaded."""
    from vitlab.data.published import load_cifar

    classes, train, test = load_cifar("cifar10", "CIFAR10", data_dir)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return Source("cifar10", classes, 3, mean, std, 32, Split(*train), Split(*test))


def cifar100(*, data_dir: str) -> Source:
    """CIFAR-100 with its 100 fine labels: `data_dir`/cifar-100-python, else downloaded."""
    from vitlab.data.published import load_cifar

    classes, train, test = load_cifar("cifar100", "CIFAR100", data_dir)
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return Source("cifar100", classes, 3, mean, std, 32, Split(*train), Split(*test))


def image_folder(
    *,
    data_dir: str,
    classes: list[str] | None = None,
    max_pixels: int | None = None,
    test_fraction: float = 0.2,
) -> Source:
    """A folder of images, one folder per class: `data_dir`/train/CLASS/... with val/ or test/, or CLASS/...

    Args:
        data_dir: With train/ beside test/ or val/, those are the splits (ImageNet's published val/ is the
            test split; its own test/ has no classes and is passed over). Otherwise a stratified
            `test_fraction` with a fixed seed is the test split.
        classes: Which class folders, in the order of their labels; None: all, sorted.
        max_pixels: Leave out images with more pixels; reads every file's header, so None is faster.
        test_fraction: Share of the images that becomes the test split, where the folder has none.
    """
    import torch

    from vitlab.data.folder import find_splits, list_images

    train_dir, test_dir = find_splits(Path(data_dir))
    names, files, labels = list_images(train_dir, classes, max_pixels)
    train = Split(None, torch.tensor(labels), files)
    if test_dir is None:
        kept, out = stratified(train.labels, test_fraction, seed=0, knob="data.source.test_fraction")
        train, test = train.subset(kept), train.subset(out)
        log.info("%s has no test split: %d of %d images became one", data_dir, len(out), len(out) + len(kept))
    else:
        _, files, labels = list_images(test_dir, classes, max_pixels, expected=names)
        test = Split(None, torch.tensor(labels), files)
        log.info("test split: %s", test_dir)
    return Source("image_folder", tuple(names), 3, IMAGENET_MEAN, IMAGENET_STD, None, train, test)


def huggingface(
    *,
    name: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str | None = None,
    val_split: str | None = None,
    test_split: str | None = None,
    test_fraction: float = 0.2,
    streaming: bool = False,
    shuffle_buffer: int = 10_000,
    cache_dir: str | None = None,
) -> Source:
    """An image classification set of the Hugging Face Hub, or a local one in the formats of its library `datasets`.

    Args:
        name: OWNER/NAME on the Hub; or a folder that `save_to_disk` wrote, one of parquet files or of images, a parquet
            file, or a pattern or URL of parquet files.
        subset: Which configuration of the set, where it has several.
        revision: A commit, branch or tag on the Hub; None: the newest.
        image_column: None: the one column of images.
        label_column: None: the one column of class labels, else one called label.
        train_split: None: `train`, or the only one.
        val_split: What is validated on; None: `validation` where there is one beside `test`, else cut from train.
        test_split: None: `test`; `validation` where there is none with labels; else a `test_fraction` of train.
        test_fraction: Share of the images that becomes the test split, where the set has none.
        streaming: Read parquet files where they lie, a row group at a time, instead of downloading them first.
        shuffle_buffer: Among about how many images streamed ones are drawn at random. As many, as they are encoded, lie
            in the memory of a machine's processes together, and at least two row groups.
        cache_dir: Where downloads are kept; None: where the Hub's library keeps them (`HF_HOME`).
    """
    from vitlab.data.huggingface import load

    return load(
        name=name,
        subset=subset,
        revision=revision,
        image_column=image_column,
        label_column=label_column,
        train_split=train_split,
        val_split=val_split,
        test_split=test_split,
        test_fraction=test_fraction,
        streaming=streaming,
        shuffle_buffer=shuffle_buffer,
        cache_dir=cache_dir,
    )


def shards(
    *,
    data_dir: str,
    shuffle_buffer: int | None = 10_000,
    verify: bool = False,
    test_fraction: float = 0.2,
    cache_dir: str | None = None,
    cache_gb: float = 100.0,
) -> Source:
    """Images that `src/prepare.py` packed into shards, or indexed.

    Args:
        data_dir: The folder, or a URL of LitData's (s3://, gs://, ...), from which shards are fetched when needed.
        shuffle_buffer: Among about how many images those of a step are drawn, shard after shard; None: among all,
            which reads a local disk at random places.
        verify: Compare every checksum before training.
        test_fraction: Share of the images that becomes the test split, where the set has none.
        cache_dir: Where fetched shards are kept; None: in the user's cache.
        cache_gb: About how many gigabytes of them are kept.
    """
    from vitlab.data.shards import load

    return load(
        data_dir=data_dir,
        shuffle_buffer=shuffle_buffer,
        verify=verify,
        test_fraction=test_fraction,
        cache_dir=cache_dir,
        cache_gb=cache_gb,
    )


def fake(
    *,
    samples: int = 1024,
    test_samples: int = 256,
    size: int = 32,
    channels: int = 3,
    num_classes: int = 10,
) -> Source:
    """Images made up the same on every machine: a pattern per class, dimmed, under noise; learnable."""
    import torch
    from torch.nn.functional import interpolate

    knobs = {"samples": samples, "test_samples": test_samples, "size": size, "channels": channels}
    for knob, value in {**knobs, "num_classes": num_classes}.items():
        if value < 1:
            raise ValueError(f"data.source.{knob}={value} must be at least 1")
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num_classes, channels, 4, 4, generator=generator)
    patterns = interpolate(coarse, (size, size), mode="bilinear")

    def split(count: int) -> Split:
        labels = torch.arange(count) % num_classes
        images = torch.empty(count, channels, size, size, dtype=torch.uint8)
        for start in range(0, count, 256):  # in pieces: the float images need four times the memory
            pattern = patterns[labels[start : start + 256]]
            noise = torch.rand(pattern.shape, generator=generator)
            images[start : start + 256] = ((0.5 * pattern + 0.5 * noise) * 255).to(torch.uint8)
        return Split(images, labels)

    names = tuple(f"class{label}" for label in range(num_classes))
    mean, std = (0.5,) * channels, (0.18,) * channels
    return Source("fake", names, channels, mean, std, size, split(samples), split(test_samples))
