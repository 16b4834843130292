"""Resolve name, splits and columns of a set on the Hub or in local files, without a download."""

import glob
import importlib.util
import logging
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vitlab.config.schema import suggest
from vitlab.storage.remote import hub_problem

log = logging.getLogger(__name__)

LABELS = ("label", "labels", "class", "target", "cls")  # columns that are used even if they are not of class labels
VALIDATION = ("validation", "valid", "val", "dev")
cached_hub_problem = cache(hub_problem)


class DatasetNotFound(ValueError):
    """There is no such set, split or column, or it can't be reached."""


@dataclass(frozen=True)
class ResolvedDataset:
    """The description of a set."""

    name: str
    splits: tuple[str, ...]
    columns: Mapping[str, Any] | None  # features by name; None if only preparing the set shows them
    builder: Any  # datasets.DatasetBuilder; None for a folder that `save_to_disk` wrote
    saved: Mapping[str, Any] | None  # datasets.Dataset by split, of such a folder
    version: str  # commit on the Hub; empty for local files

    @property
    def short(self) -> str:
        """The prefix of its rows' names, independent of where it is stored."""
        return self.name if self.version else Path(self.name).name

    def check_names(self, kind: str, known: Collection[str], **settings: str | None) -> None:
        """Raise `DatasetNotFound` for a setting that names no split or column of the set."""
        for knob, value in settings.items():
            if value is not None and value not in known:
                hint = suggest(value, known) or f"; there are {', '.join(known) or 'none'}"
                raise DatasetNotFound(f"data.source.{knob}={value}: {self.short} has no such {kind}{hint}")


def resolve_dataset(
    name: str | None, *, subset: str | None = None, revision: str | None = None, cache_dir: str | None = None
) -> ResolvedDataset:
    """The set of a name on the Hub or a local path. Raises `DatasetNotFound`."""
    if importlib.util.find_spec("datasets") is None:
        remedy = "pip install -e '.[huggingface]'"
        raise DatasetNotFound(f"data=huggingface needs the package datasets, which isn't installed: {remedy}")
    if not name:
        raise DatasetNotFound("data.name is not set: set it to OWNER/NAME on the Hub, or to a folder or file")
    place = Path(name).expanduser()
    if place.is_dir() and any((place / file).is_file() for file in ("dataset_dict.json", "state.json")):
        return saved_dataset(name, place)
    if place.is_file() or "://" in name or glob.has_magic(name):
        if not name.endswith(".parquet"):
            raise DatasetNotFound(f"data.name={name} is no parquet file; of other files, name their folder")
        describe = load_builder if "://" in name else describe_dataset
        return describe(name, "parquet", subset, cache_dir, data_files=name)
    if place.is_dir():
        return describe_dataset(name, str(place), subset, cache_dir)
    if name.count("/") > 1 or name[0] in "/.~" or not re.fullmatch(r"[\w./-]+", name):
        raise DatasetNotFound(f"data.name={name}: there is no such file or folder, and the Hub's names are OWNER/NAME")
    return hub_dataset(name, subset, revision, cache_dir)


def saved_dataset(name: str, place: Path) -> ResolvedDataset:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(place))
    except Exception as error:  # damaged files end in errors of any kind
        reason = first_line(error)
        raise DatasetNotFound(f"data.name={name} was written by save_to_disk and can't be read ({reason})") from error
    splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    columns = next(iter(splits.values())).features if splits else {}
    return ResolvedDataset(name, tuple(splits), columns, None, splits, "")


def hub_dataset(name: str, subset: str | None, revision: str | None, cache_dir: str | None) -> ResolvedDataset:
    """A set on the Hub, or its cached copy if the Hub can't be reached."""
    if not (absent := cached_hub_problem()):
        return load_builder(name, name, subset, cache_dir, on_hub=True, revision=revision)
    import datasets
    import huggingface_hub

    # otherwise its client would retry for minutes
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    dataset = None
    with suppress(DatasetNotFound):
        dataset = describe_dataset(name, name, subset, cache_dir, on_hub=True)
    if dataset is None or revision not in (None, dataset.version):
        cached = f"revision {dataset.version}, not {revision}" if dataset else "no such set"
        missing = f"there is no such folder here, the Hub can't be reached ({absent}), and its cache has {cached}"
        remedy = f"run `hf download --repo-type dataset {name}` where there is a network and name its folder"
        raise DatasetNotFound(f"data.name={name}: {missing}; {remedy}")
    log.warning("%s: the Hub can't be reached (%s); using the cached revision %s", name, absent, dataset.version)
    return dataset


def describe_dataset(
    name: str, path: str, subset: str | None, cache_dir: str | None, *, on_hub: bool = False, **options: Any
) -> ResolvedDataset:
    """The set at `path`, a folder, a format or a name on the Hub."""
    import datasets

    for library in ("httpx", "httpx2", "datasets"):  # they log each request
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        builder = datasets.load_dataset_builder(path, subset, cache_dir=cache_dir, **options)
    except Exception as error:  # of the Hub, of files, of YAML, of configurations: as many kinds
        text, what = first_line(error), f"data.name={name}" + (f" with data.source.subset={subset}" if subset else "")
        if "scripts are no longer supported" in text:
            text += "; try data.source.revision=refs/convert/parquet, which the Hub makes of many sets"
        raise DatasetNotFound(f"{what} can't be opened: {text}") from error
    files = builder.config.data_files or {}
    if files and not any(files.values()):
        raise DatasetNotFound(f"data.name={name} matches no file")
    splits = tuple(map(str, builder.info.splits or files))
    columns = builder.info.features
    if columns is None and type(builder).__module__ == "datasets.packaged_modules.parquet.parquet":
        import fsspec
        import pyarrow.parquet as pq

        with fsspec.open(str(next(iter(files.values()))[0])) as file:
            columns = datasets.Features.from_arrow_schema(pq.read_schema(file))
    return ResolvedDataset(name, splits, columns, builder, None, str(builder.hash) if on_hub else "")


load_builder = cache(describe_dataset)  # one request for all jobs of a sweep and for loading


def first_line(error: BaseException) -> str:
    """The first 300 characters of an error's text, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def choose_splits(
    dataset: ResolvedDataset, train: str | None, val: str | None, test: str | None
) -> tuple[str, str | None, str | None]:
    """The splits for training, validation and test; None: to be held out from train. Raises `DatasetNotFound`."""
    dataset.check_names("split", dataset.splits, train_split=train, val_split=val, test_split=test)
    validation = next((split for split in VALIDATION if split in dataset.splits), None)
    if train is None:
        others = [split for split in dataset.splits if split not in ("test", validation, val, test)]
        candidates = ["train"] if "train" in dataset.splits else others if len(others) == 1 else dataset.splits
        if len(candidates) != 1:
            existing = f"no split train; it has {', '.join(dataset.splits) or 'none'}"
            raise DatasetNotFound(f"data.source.train_split is not set, and {dataset.name} has {existing}")
        train = candidates[0]
    left = [split for split in dataset.splits if split not in (train, val, test)]
    test = test or ("test" if "test" in left else None)
    if test is None and validation in left:
        return train, val, validation  # as ImageNet is published
    return train, val or (validation if validation in left else None), test


def choose_columns(
    dataset: ResolvedDataset, columns: Mapping[str, Any], image: str | None, label: str | None
) -> tuple[str, str]:
    """The columns of images and of labels, by their features. Raises `DatasetNotFound`."""
    import datasets

    dataset.check_names("column", columns, image_column=image, label_column=label)
    images = [name for name, kind in columns.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in columns.items() if isinstance(kind, datasets.ClassLabel)]
    if len(labels) != 1:
        labels = [name for name in LABELS if name in (labels or columns)][:1] or labels
    for knob, value, candidates in (("image_column", image, images), ("label_column", label, labels)):
        if value is None and len(candidates) != 1:
            number = "several such columns" if candidates else "no such column"
            names = f"{number}; name one of {', '.join(candidates or columns)}"
            raise DatasetNotFound(f"data.source.{knob} is not set, and {dataset.name} has {names}")
    image, label = image or images[0], label or labels[0]
    if image not in images:
        raise DatasetNotFound(f"data.source.image_column={image} has no images, but {columns[image]}")
    kind = columns[label]
    plain = isinstance(kind, datasets.Value) and re.match(r"u?int|bool|(large_)?string", kind.dtype)
    if not isinstance(kind, datasets.ClassLabel) and not plain:
        expected = "expected a class label, an integer or a string for each image"
        raise DatasetNotFound(f"data.source.label_column={label} has {kind}; {expected}")
    return image, label
