"""The name, splits and columns of a set as `datasets` finds it, on the Hub or in local files, without a download."""

import glob
import importlib.util
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vitlab.config.schema import suggest
from vitlab.data.tables import open_parquet
from vitlab.storage.hub import hub_problem

log = logging.getLogger(__name__)

LABELS = ("label", "labels", "class", "target")  # columns that are taken without being of class labels
VALIDATION = ("validation", "valid", "val", "dev")
cached_hub_problem = cache(hub_problem)


class DatasetNotFound(ValueError):
    """There is no such set, split or column, or it can't be reached; the message begins with the setting."""


@dataclass(frozen=True)
class ResolvedDataset:
    """The description of a set."""

    name: str
    splits: tuple[str, ...]
    columns: Mapping[str, Any] | None  # features by name; None if they are known only once the set is prepared
    builder: Any  # a datasets.DatasetBuilder; None for what `save_to_disk` wrote
    saved: Mapping[str, Any] | None  # datasets.Dataset by split
    version: str  # the commit on the Hub; empty for local files

    @property
    def short(self) -> str:
        """The prefix of its rows' names, wherever it is stored."""
        return self.name if self.version else Path(self.name).name


def resolve_dataset(
    name: str | None, *, subset: str | None = None, revision: str | None = None, cache_dir: str | None = None
) -> ResolvedDataset:
    """Find a set by its name on the Hub, or by a local path. Raises `DatasetNotFound`."""
    if importlib.util.find_spec("datasets") is None:
        install = "the package datasets, which isn't installed: pip install -e '.[huggingface]'"
        raise DatasetNotFound(f"data=huggingface reads sets with {install}")
    if not name:
        wanted = "data=huggingface wants data.name=OWNER/NAME on the Hub, or a folder or file"
        raise DatasetNotFound(f"data.name is not set: {wanted}")
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
        raise DatasetNotFound(
            f"data.name={name} was written by save_to_disk, and can't be read ({first_line(error)})"
        ) from error
    splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    columns = next(iter(splits.values())).features if splits else {}
    return ResolvedDataset(name, tuple(splits), columns, None, splits, "")


def hub_dataset(name: str, subset: str | None, revision: str | None, cache_dir: str | None) -> ResolvedDataset:
    """A set on the Hub, or an earlier download of it if the Hub can't be reached."""
    remedy = f"run `hf download --repo-type dataset {name}` where there is a network and name its folder"
    if absent := cached_hub_problem():
        import datasets
        import huggingface_hub

        # else its client would try for minutes
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
        try:
            dataset = describe_dataset(name, name, subset, cache_dir, on_hub=True)
        except DatasetNotFound as error:
            raise DatasetNotFound(
                f"data.name={name}: there is no such folder here, the Hub can't be reached ({absent}), and its cache "
                f"has no such set; {remedy}"
            ) from error
        if revision is not None and revision != dataset.version:
            raise DatasetNotFound(
                f"data.source.revision={revision}: the Hub can't be reached ({absent}), and its cache has "
                f"{dataset.version}; name that, or {remedy}"
            )
        log.warning("%s: %s; the cache's %s is used", name, absent, dataset.version)
        return dataset
    return load_builder(name, name, subset, cache_dir, on_hub=True, revision=revision)


def describe_dataset(
    name: str, path: str, subset: str | None, cache_dir: str | None, *, on_hub: bool = False, **options: Any
) -> ResolvedDataset:
    """A set that `datasets` has not prepared yet."""
    import datasets

    for library in ("httpx", "httpx2"):  # a line for each request would fill the log
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("datasets").setLevel(logging.ERROR)
    try:
        builder = datasets.load_dataset_builder(path, subset, cache_dir=cache_dir, **options)
    except Exception as error:  # of the Hub, of files, of YAML, of configurations: as many kinds
        text = first_line(error)
        if "scripts are no longer supported" in text:
            text = "it is made by a script, and no code of a set is run; the Hub has many of them as parquet too: "
            text += "data.source.revision=refs/convert/parquet"
        if isinstance(error, ValueError) and "onfig" in text:
            raise DatasetNotFound(f"data.source.subset={subset or 'null'}: {text}") from error
        raise DatasetNotFound(f"data.name={name} can't be opened: {text}") from error
    files = builder.config.data_files or {}
    if files and not any(files.values()):
        raise DatasetNotFound(f"data.name={name} matches no file")
    splits = tuple(map(str, builder.info.splits or files))
    columns = builder.info.features
    if columns is None and is_parquet(builder):
        columns = datasets.Features.from_arrow_schema(open_parquet(str(next(iter(files.values()))[0])).schema_arrow)
    return ResolvedDataset(name, splits, columns, builder, None, str(builder.hash) if on_hub else "")


load_builder = cache(describe_dataset)  # once in a process over a network, for all jobs of a sweep and for loading


def is_parquet(builder: Any) -> bool:
    return type(builder).__module__ == "datasets.packaged_modules.parquet.parquet"


def first_line(error: BaseException) -> str:
    """The beginning of an error's text, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def choose_splits(
    dataset: ResolvedDataset, train: str | None, val: str | None, test: str | None
) -> tuple[str, str | None, str | None]:
    """Which splits to train on, validate on and test on; None: to be cut from train. Raises `DatasetNotFound`."""
    for knob, split in (("train_split", train), ("val_split", val), ("test_split", test)):
        if split is not None and split not in dataset.splits:
            hint = suggest(split, dataset.splits) or f"; there are {', '.join(dataset.splits) or 'none'}"
            raise DatasetNotFound(f"data.source.{knob}={split}: {dataset.short} has no such split{hint}")
    validation = next((split for split in VALIDATION if split in dataset.splits), None)
    others = [split for split in dataset.splits if split not in ("test", validation, val, test)]
    if train is None:
        train = "train" if "train" in dataset.splits else others[0] if len(others) == 1 else None
        train = dataset.splits[0] if train is None and len(dataset.splits) == 1 else train
    if train is None:
        existing = ", ".join(dataset.splits) or "none"
        raise DatasetNotFound(
            f"data.source.train_split is not set, and {dataset.name} has no split train; it has {existing}"
        )
    left = [split for split in dataset.splits if split not in (train, val, test)]
    test = test or ("test" if "test" in left else None)
    if test is None and validation in left:
        return train, val, validation  # as ImageNet is published
    return train, val or (validation if validation in left else None), test


def choose_columns(
    dataset: ResolvedDataset, columns: Mapping[str, Any], image: str | None, label: str | None
) -> tuple[str, str]:
    """The columns of images and of labels, by their kinds. Raises `DatasetNotFound`."""
    import datasets

    for knob, column in (("image_column", image), ("label_column", label)):
        if column is not None and column not in columns:
            hint = suggest(column, columns) or f"; there are {', '.join(columns)}"
            raise DatasetNotFound(f"data.source.{knob}={column}: {dataset.short} has no such column{hint}")
    if image is None:
        images = [name for name, kind in columns.items() if isinstance(kind, datasets.Image)]
        images = images or [name for name, kind in columns.items() if has_image_bytes(kind)]
        image = only_candidate("image_column", images, columns, dataset, "of images")
    elif not (isinstance(columns[image], datasets.Image) or has_image_bytes(columns[image])):
        raise DatasetNotFound(f"data.source.image_column={image} holds no images, but {columns[image]}")
    if label is None:
        labels = [name for name, kind in columns.items() if isinstance(kind, datasets.ClassLabel)]
        if len(labels) != 1:
            labels = [name for name in LABELS if name in (labels or columns)][:1] or labels
        label = only_candidate("label_column", labels, columns, dataset, "of class labels")
    kind = columns[label]
    plain = isinstance(kind, datasets.Value) and re.match(r"u?int|bool|(large_)?string", kind.dtype)
    if not isinstance(kind, datasets.ClassLabel) and not plain:
        what = "a number with fractions" if isinstance(kind, datasets.Value) else "several labels, or none"
        needed = "one class for each is needed: a class label, an integer or a string"
        raise DatasetNotFound(f"data.source.label_column={label} holds {what} for each image ({kind}); {needed}")
    return image, label


def has_image_bytes(kind: Any) -> bool:
    """Whether a column's feature is encoded images without being declared so."""
    import datasets

    if isinstance(kind, dict):
        return set(kind) == {"bytes", "path"}
    return isinstance(kind, datasets.Value) and kind.dtype in ("binary", "large_binary")


def only_candidate(
    knob: str, candidates: Sequence[str], columns: Mapping[str, Any], dataset: ResolvedDataset, what: str
) -> str:
    if len(candidates) == 1:
        return candidates[0]
    why = f"several columns {what}" if candidates else f"no column that is {what} by its kind"
    names = ", ".join(candidates or columns)
    raise DatasetNotFound(f"data.source.{knob} is not set, and {dataset.name} has {why}; name one of {names}")
