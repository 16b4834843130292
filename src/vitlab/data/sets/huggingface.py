"""Image classification sets of the Hugging Face Hub, or local ones, read with the library `datasets`.

`huggingface_index` resolves name, splits and columns before any download. Then the set is downloaded and mapped into
memory: each row has a number and all labels are known at the start, as exact evaluation and resuming need.
`datasets.IterableDataset` can't give that: its ranks get files of unequal length, and its order depends on the number
of workers. No code of a set is run: `datasets` 4 and later has no scripts.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitlab.config.bounds import Fraction, check_bounds
from vitlab.config.printable import format_names
from vitlab.config.schema import Node
from vitlab.data.rows import InvalidImage, Rows
from vitlab.data.sets.huggingface_index import (
    DatasetNotFound,
    ResolvedDataset,
    choose_columns,
    choose_splits,
    first_line,
    resolve_dataset,
)
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD, Facts, Source, Split

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

HELD_OUT = "held out from train"


def problems(**settings: Any) -> Iterator[str]:
    """Problems of the settings that the set's description shows."""
    try:
        resolved = resolve_dataset(**{key: settings[key] for key in ("name", "subset", "revision", "cache_dir")})
        choose_splits(resolved, *(settings[f"{split}_split"] for split in ("train", "val", "test")))
        if resolved.columns is not None:
            choose_columns(resolved, resolved.columns, settings["image_column"], settings["label_column"])
    except DatasetNotFound as error:
        yield str(error)


def label(source: Mapping[str, Any]) -> str:
    """`ylecun_mnist` for ylecun/mnist, or the name of a local folder or file."""
    if not isinstance(name := source.get("name"), str):
        return "huggingface"
    is_local = name[0:1] in ("/", ".", "~") or Path(name).exists()
    text = Path(name).name.removesuffix(".parquet") if is_local else name
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", text).strip("_.") or "_"


def normalize(data: Node) -> Node:
    """The group without `data.name`, which its source repeats; a local path becomes absolute."""
    source = data["source"]
    if isinstance(name := source.get("name"), str) and Path(name).expanduser().exists():
        source = {**source, "name": str(Path(name).expanduser().absolute())}
    return {**{key: value for key, value in data.items() if key != "name"}, "source": source}


@Facts(channels=3, in_memory=False, problems=problems, label=label, normalize=normalize)
@check_bounds
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
    test_fraction: Fraction = 0.2,
    cache_dir: str | None = None,
) -> Source:
    """An image classification set of the Hugging Face Hub, or a local one in the formats of its library `datasets`.

    Args:
        name: OWNER/NAME on the Hub; a folder written by `save_to_disk`, of parquet files or of images; a parquet file;
            or a pattern or URL of parquet files.
        subset: Configuration of the set, if it has several.
        revision: Commit, branch or tag on the Hub; None: the newest commit.
        image_column: None: the only column of images.
        label_column: None: the only column of class labels, else one named label.
        train_split: None: `train`, or the only split.
        val_split: None: `validation` if it isn't the test split, else held out from train.
        test_split: None: `test`; without one that has labels, `validation`, else a `test_fraction` of train.
        test_fraction: Share of the images that becomes the test split, if the set has none.
        cache_dir: Folder of downloads; None: that of the Hub's library (`HF_HOME`).

    Raises:
        DatasetNotFound: there is no such set, split or column, or it can't be reached.
        ValueError: the labels can't be used.
    """
    from vitlab.data.splitting import hold_out

    resolved = resolve_dataset(name, subset=subset, revision=revision, cache_dir=cache_dir)
    named = train_split, val_split, test_split
    train, *others = choose_splits(resolved, *named)
    tables = load_tables(resolved, (train, *others), image_column, label_column)
    unlabeled = {split for split, table in tables.items() if table.labels.null_count == len(table.labels)}
    if hidden := unlabeled & {*others} - {*named}:
        log.info("%s: split %s has no labels, and is not used", resolved.name, ", ".join(sorted(hidden)))
        resolved = replace(resolved, splits=tuple(split for split in resolved.splits if split not in hidden))
        train, *others = choose_splits(resolved, *named)
        tables = load_tables(resolved, (train, *others), image_column, label_column)
    val, test = others
    classes, labels = class_labels(resolved, tables, train)
    splits = {split: Split(None, labels[split], table.rows) for split, table in tables.items()}
    version, names = f" at {resolved.version}" if resolved.version else "", (train, val or HELD_OUT, test or HELD_OUT)
    log.info("%s%s: train split %s, validation %s, test %s", resolved.name, version, *names)
    training, testing = splits[train], splits[test] if test else None
    if testing is None:
        training, testing = hold_out(training, test_fraction, seed=0, knob="data.source.test_fraction")
    facts = (resolved.short, classes, 3, IMAGENET_MEAN, IMAGENET_STD, None)
    return Source(*facts, training, testing, val=splits[val] if val else None)


class TableRows(Rows):
    """Rows of a `datasets.Dataset` in local files, with the images or their paths."""

    def __init__(self, place: str, dataset: Any, column: str, chosen: "Tensor") -> None:
        from datasets import Image

        super().__init__(place, chosen)
        self.column = column
        self.dataset = dataset.select_columns([column]).cast_column(column, Image(decode=False))

    def read(self, row: int) -> bytes:
        value = self.dataset[row][self.column] or {}
        if (data := value.get("bytes")) is not None:
            return bytes(data)
        path = value.get("path") or ""
        if not os.path.isabs(path):  # noqa: PTH117 a million
            raise InvalidImage("the row holds no image" + (f", but the name {path}" if path else ""))
        from vitlab.data.decode import read_bytes

        return read_bytes(path)

    def content(self) -> bytes:
        """The length of each encoded image, or the name of its file."""
        import pyarrow.compute as pc

        column = self.dataset.data.column(self.column)  # of `bytes` and `path`
        lengths = pc.fill_null(pc.binary_length(pc.struct_field(column, "bytes")), -1)
        digest = hashlib.blake2b(lengths.to_numpy().astype("<i8").tobytes(), digest_size=16)
        if pc.any(pc.equal(lengths, -1)).as_py():
            for path in pc.struct_field(column, "path").to_pylist():
                digest.update("/".join((path or "").split("/")[-2:]).encode() + b"\0")
        return digest.digest()


class Table(NamedTuple):
    """A split: its labels, and the rows with its images."""

    labels: Any  # pyarrow.ChunkedArray; null if missing, or -1, as in sets of the Hub that keep them secret
    feature: Any  # of the labels
    rows: TableRows


def load_tables(
    resolved: ResolvedDataset, splits: Iterable[str | None], image: str | None, label: str | None
) -> dict[str, Table]:
    """The tables of splits; missing ones are downloaded and prepared."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import torch

    chosen, sets = [split for split in splits if split], resolved.saved
    if sets is None:
        try:
            resolved.builder.download_and_prepare()
            sets = {split: resolved.builder.as_dataset(split=split) for split in chosen}
        except Exception as error:  # of networks, disks and files, as many kinds
            reason = f"{first_line(error)} {first_line(error.__cause__) if error.__cause__ else ''}".strip()
            raise DatasetNotFound(f"data.name={resolved.name} can't be loaded: {reason}") from error
    tables = {}
    for split in chosen:
        dataset = sets[split]
        images, classes = choose_columns(resolved, dataset.features, image, label)
        check_class_names(resolved, split, classes, dataset.features[classes])
        labels = dataset.select_columns([classes]).with_format("arrow")[:].column(classes)
        if hasattr(dataset.features[classes], "names"):
            labels = pc.if_else(pc.less(labels, 0), pa.scalar(None, labels.type), labels)
        rows = TableRows(f"{resolved.short}/{split}", dataset, images, torch.arange(len(labels)))
        tables[split] = Table(labels, dataset.features[classes], rows)
    return tables


def check_class_names(resolved: ResolvedDataset, split: str, column: str, feature: Any) -> None:
    """Raise `DatasetNotFound` for a local parquet file with other classes: `datasets` takes those of the first file."""
    import datasets
    import pyarrow.parquet as pq

    for file in (resolved.builder.config.data_files or {}).get(split, ()) if resolved.builder else ():
        if str(file).endswith(".parquet") and "://" not in str(file):
            other = datasets.Features.from_arrow_schema(pq.read_schema(file)).get(column)
            if getattr(other, "names", None) not in (None, getattr(feature, "names", None)):
                problem = f"the classes of {file} have other names, or another order"
                raise DatasetNotFound(f"data.name={resolved.name}: {problem}, than those of other files")


def class_labels(
    resolved: ResolvedDataset, tables: Mapping[str, Table], train: str
) -> tuple[tuple[str, ...], dict[str, "Tensor"]]:
    """Class names, and the labels of each split, int64 [n].

    Without names, the sorted labels of train, integers or strings, are the classes. Raises `ValueError` for labels that
    are hidden or missing, or that train doesn't have.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import torch

    names = getattr(tables[train].feature, "names", None)
    for split, table in tables.items():
        if hidden := table.labels.null_count:
            remedy = "choose another with data.source.{train,val,test}_split"
            missing = f"{hidden} of the {len(table.labels)} labels of the split {split} are -1 or missing"
            raise ValueError(f"{resolved.name}: {missing}, as where they are kept secret; {remedy}")
        if getattr(table.feature, "names", None) != names:
            other = f"the classes of the split {split} have other names, or another order, than {train}'s"
            raise ValueError(f"{resolved.name}: {other}")
    trained = tables[train].labels
    values = [*range(len(names))] if names is not None else sorted(pc.unique(trained).to_pylist())
    classes = tuple(map(str, values if names is None else names))
    if names is None:
        listed = format_names(classes)
        log.info("%s: its labels have no names; %d classes, sorted: %s", resolved.name, len(values), listed)
    known, labels = pa.array(values, trained.type), {}
    for split, table in tables.items():
        numbers = pc.index_in(table.labels.cast(known.type), value_set=known)
        if numbers.null_count:
            other = pc.filter(table.labels, pc.is_null(numbers))[0].as_py()
            raise ValueError(f"{resolved.name}: the split {split} has the label {other!r}, which {train} doesn't have")
        labels[split] = torch.from_numpy(numbers.to_numpy().copy()).long()
    return classes, labels
