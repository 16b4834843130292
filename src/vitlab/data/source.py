"""`Source`: a data set as loaded, with its splits and labels; images are neither resized nor normalized.

A data set is a function that returns its `Source`, in `vitlab.data.sets` or in a user's module, and a YAML that names
the function. The decorator `@Facts(...)` has what is known before loading. The module is imported to compose a
configuration, so heavy libraries are imported inside its functions.
"""

import hashlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vitlab.config import allowlist
from vitlab.config.schema import Node, resolve
from vitlab.data.file_list import FileList
from vitlab.data.rows import Rows

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Array = Tensor | np.ndarray[Any, Any]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Loader = TypeVar("Loader", bound=Callable[..., "Source"])


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a data set before it is loaded, as a decorator of its loader.

    Functions of the loader's settings: `problems` yields what is wrong with them, `count` returns the number of train
    images, if it is known, and whether there is a validation split. `label` maps `data.source` to the set's name in
    names of runs (else the loader's), `normalize` the group `data` to the form that is recorded, with absolute paths.
    `files` are patterns below `data_dir`, one of which names what would be downloaded.
    """

    native_size: int | None = None  # side in pixels
    channels: int | None = None
    num_classes: int | None = None
    train_samples: int | None = None
    in_memory: bool | None = None  # or decoded from files
    files: tuple[str, ...] = ()
    epochs: int | None = None  # of a training, unless `trainer.max_epochs` is set
    problems: Callable[..., Iterator[str]] | None = None
    count: Callable[..., tuple[int | None, bool]] | None = None
    label: Callable[[Mapping[str, Any]], str] | None = None
    normalize: Callable[[Node], Node] | None = None

    def __call__(self, loader: Loader) -> Loader:
        vars(loader)["facts"] = self
        return loader

    def size(self, settings: Node) -> tuple[int | None, bool]:
        """The number of train images, if it is known, and whether there is a validation split."""
        if self.train_samples is None and self.count is not None:
            return self.count(**settings)
        return self.train_samples, False

    def check(self, source: "Source") -> None:
        loaded = {"native_size": source.native_size, "channels": source.channels, "num_classes": len(source.classes)}
        for name, value in loaded.items():
            if (known := getattr(self, name)) is not None and value is not None and known != value:
                facts = f"its loader's @Facts has {name}={known}; correct one of them"
                raise ValueError(f"{source.name} was loaded with {name}={value}, and {facts}")


def loader_facts(loader: object) -> Facts:
    """The facts of a loader, or of the one at a dotted path if that may be called."""
    if isinstance(loader, str):
        try:
            loader = None if allowlist.refusal(loader) else resolve(loader)
        except ImportError:
            loader = None
    facts = getattr(getattr(loader, "func", loader), "facts", None)
    return facts if isinstance(facts, Facts) else Facts()


def loader_settings(source: Node) -> Node:
    """The settings of a node `data.source`, with the defaults of its loader."""
    parameters = inspect.signature(resolve(str(source["_target_"]))).parameters.values()
    defaults = {known.name: known.default for known in parameters if known.default is not known.empty}
    return defaults | {key: value for key, value in source.items() if not key.startswith("_")}


def images_to_train_on(images: int, has_validation: bool, val_fraction: float, limit: int | None) -> int:
    """Train images without those that are held out for validation, at most `limit`."""
    left = images if has_validation else images - math.ceil(images * val_fraction)
    return min(left, limit or left)


def folder_label(source: Mapping[str, Any]) -> str:
    """`Facts.label` of sets that are named by their folder."""
    return Path(str(source.get("data_dir"))).name


@dataclass(frozen=True, eq=False, init=False)
class Split:
    """Labels with either `images` in memory, or `files`: paths, or `Rows`. NumPy arrays are converted.

    A split that was cut from images shares them (`stored`), and has the numbers of its own (`rows`, None: all).
    """

    stored: "Tensor | None"  # uint8 [M, C, H, W]
    labels: "Tensor"  # int64 [N]
    files: FileList | Rows | None
    rows: "Tensor | None"  # int64 [N]

    def __init__(
        self, images: "Array | None", labels: "Array", files: Sequence[str] | None = None, rows: "Tensor | None" = None
    ) -> None:
        import torch

        samples = files if images is None else images if rows is None else rows
        if samples is None or (images is not None and files is not None):
            raise ValueError("a Split has either images or files")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # as memory maps are
            labels = torch.as_tensor(labels)
            images = None if images is None else torch.as_tensor(images)
        if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
            one_hot = "; use labels.argmax(1) of one-hot labels" if labels.ndim == 2 else ""
            raise ValueError(f"labels are {shape_and_type(labels)}; expected class numbers, integers [N]{one_hot}")
        if images is not None and (images.dtype != torch.uint8 or images.ndim != 4):
            remedy = "; use images[:, None] of gray images" if images.ndim == 3 else ""
            if images.is_floating_point():
                remedy = "; use (255 * images).round() as uint8, of images in [0, 1]"
            expected = "expected uint8 [N, channels, height, width] with values from 0 to 255"
            raise ValueError(f"images are {shape_and_type(images)}; {expected}{remedy}")
        if len(samples) != len(labels):
            raise ValueError(f"{len(samples)} images have {len(labels)} labels; expected one for each")
        if files is not None and not isinstance(files, FileList | Rows):
            files = FileList(files)
        for name, value in (("stored", images), ("labels", labels.long()), ("files", files), ("rows", rows)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> "Tensor | None":
        """uint8 [N, C, H, W]: a copy, if they are a part of those in memory."""
        return self.stored if self.stored is None or self.rows is None else self.stored[self.rows]

    def images_at(self, indices: "Tensor") -> "Tensor":
        """Images in memory at `indices` (int64 [n]), uint8 [n, C, H, W]."""
        assert self.stored is not None
        return self.stored[indices if self.rows is None else self.rows[indices]]

    def subset(self, indices: "Tensor") -> "Split":
        """The samples at `indices` (int64 [n]), in that order. Less than half of the images in memory are copied."""
        labels = self.labels[indices]
        if self.stored is not None and 2 * len(indices) < len(self.stored):
            return Split(self.images_at(indices), labels)
        if self.stored is not None:
            return Split(self.stored, labels, rows=indices if self.rows is None else self.rows[indices])
        files: Any = self.files
        return Split(None, labels, files.subset(indices if isinstance(files, Rows) else indices.numpy()))

    def digest(self) -> str:
        """A hash of the labels, and of pixels, names of files with their folder, or sizes of rows."""
        import torch

        digest = hashlib.blake2b(self.labels.contiguous().numpy().data, digest_size=16)
        for start in range(0, len(self) if self.stored is not None else 0, 2**12):
            digest.update(self.images_at(torch.arange(start, min(start + 2**12, len(self)))).numpy().data)
        if isinstance(self.files, Rows):
            digest.update(self.files.digest())
        for names in self.files.names() if isinstance(self.files, FileList) else ():
            digest.update(names)
        return digest.hexdigest()

    @property
    def blocks(self) -> "Tensor | None":
        """The block of each sample, int64 [N]; None if samples are read one by one."""
        return self.files.blocks if isinstance(self.files, Rows) else None


def shape_and_type(array: "Tensor") -> str:
    return f"{str(array.dtype).removeprefix('torch.')} {list(array.shape)}"


@dataclass(frozen=True, eq=False)
class Source:
    """A data set; `mean` and `std` are per channel, of train images scaled to [0, 1].

    Without a published `val`, it is held out from train. Of rows that are read in blocks, the images of a step are
    drawn from about `shuffle_buffer`; None: from all. Raises `ValueError` for splits that don't fit the other values.
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
    shuffle_buffer: int | None = 1000

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train, **({"val": self.val} if self.val else {}), "test": self.test}

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        for knob, least in (("mean", 0.0), ("std", 1e-6)):
            values = tuple(map(float, getattr(self, knob)))
            if len(values) != self.channels or not all(least <= value <= 1 for value in values):
                expected = f"a number for each of channels={self.channels}, of images scaled to [0, 1]"
                raise ValueError(f"{self.name} has {knob}={values}; expected {expected}")
            object.__setattr__(self, knob, values)
        for name, split in self.splits.items():
            if len(split) == 0:
                raise ValueError(f"{self.name} has no images in its {name} split; put some there")
            for label in (int(split.labels.min()), int(split.labels.max())):
                if not 0 <= label < len(self.classes):
                    classes = f"{len(self.classes)} classes: labels are 0 to {len(self.classes) - 1}"
                    raise ValueError(f"{self.name} has the label {label} in its {name} split, and {classes}")
            if problem := self.image_problem(split):
                raise ValueError(f"{self.name}: {problem}, in its {name} split")

    def image_problem(self, split: Split) -> str | None:
        """Why the images of a split don't fit `channels` and `native_size`."""
        if split.stored is None:
            return None if self.channels == 3 else f"files are decoded to 3 channels, and channels={self.channels}"
        channels, height, width = split.stored.shape[1:]
        if channels != self.channels:
            last = "; channels are last, so move that axis to 1: [N, C, H, W]" if width == self.channels else ""
            return f"images are {shape_and_type(split.stored)}, and channels={self.channels}{last}"
        if self.native_size not in (None, height) or self.native_size not in (None, width):
            return f"images have {height} x {width} pixels, and native_size={self.native_size}"
        return None
