"""The splits of a set as tables, mapped into memory: their labels, and the rows with their images."""

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitlab.config.printable import format_names
from vitlab.data.rows import InvalidImage, Rows
from vitlab.data.sets.huggingface_index import DatasetNotFound, ResolvedDataset, choose_columns, first_line

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


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
        if (path := value.get("path")) is None:
            raise InvalidImage("the row holds no image")
        if not os.path.isabs(path):  # noqa: PTH117 a million
            raise InvalidImage(f"the row holds no image, but the name {path}")
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


@dataclass(frozen=True, eq=False)
class Table:
    """A split: its labels, and the rows with its images."""

    labels: Any  # pyarrow.ChunkedArray
    feature: Any  # of the labels
    rows: TableRows

    @property
    def missing_labels(self) -> int:
        """Number of labels that are missing, or -1, as in sets of the Hub that keep them secret."""
        import pyarrow as pa
        import pyarrow.compute as pc

        missing = int(self.labels.null_count)
        if not pa.types.is_integer(self.labels.type) or not hasattr(self.feature, "names"):
            return missing
        return missing + int(pc.sum(pc.less(self.labels, 0)).as_py() or 0)


def load_tables(resolved: ResolvedDataset, splits: list[str], image: str | None, label: str | None) -> dict[str, Table]:
    """The tables of splits; missing ones are downloaded and prepared."""
    import torch

    sets = resolved.saved
    if sets is None:
        try:
            resolved.builder.download_and_prepare()
            sets = {split: resolved.builder.as_dataset(split=split) for split in splits}
        except Exception as error:  # of networks, disks and files, as many kinds
            reason = f"{first_line(error)} {first_line(error.__cause__) if error.__cause__ else ''}".strip()
            raise DatasetNotFound(f"data.name={resolved.name} can't be loaded: {reason}") from error
    tables = {}
    for split in splits:
        dataset = sets[split]
        images, classes = choose_columns(resolved, dataset.features, image, label)
        check_class_names(resolved, split, classes, dataset.features[classes])
        labels = dataset.select_columns([classes]).with_format("arrow")[:].column(classes)
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
        if hidden := table.missing_labels:
            remedy = "choose another with data.source.{train,val,test}_split"
            missing = f"{hidden} of the {len(table.labels)} labels of the split {split} are -1 or missing"
            raise ValueError(f"{resolved.name}: {missing}, as where they are kept secret; {remedy}")
        if getattr(table.feature, "names", None) != names:
            other = f"the classes of the split {split} have other names, or another order, than {train}'s"
            raise ValueError(f"{resolved.name}: {other}")
    if names is not None:
        numbers = {split: torch.from_numpy(table.labels.to_numpy().copy()).long() for split, table in tables.items()}
        return tuple(map(str, names)), numbers
    values = sorted(pc.unique(tables[train].labels).to_pylist())
    if len(values) > len(tables[train].labels) / 2:
        values_of = f"{len(values)} different values in {len(tables[train].labels)} images, so these are no classes"
        remedy = "name another with data.source.label_column"
        raise ValueError(f"{resolved.name}: the column of labels has {values_of}; {remedy}")
    classes = tuple(map(str, values))
    log.info("%s: its labels have no names; %d classes, sorted: %s", resolved.name, len(values), format_names(classes))
    known = pa.array(values, tables[train].labels.type)
    labels = {}
    for split, table in tables.items():
        numbers_or_null = pc.index_in(table.labels.cast(known.type), value_set=known)
        if numbers_or_null.null_count:
            other = pc.filter(table.labels, pc.is_null(numbers_or_null))[0].as_py()
            raise ValueError(f"{resolved.name}: the split {split} has the label {other!r}, which {train} doesn't have")
        labels[split] = torch.from_numpy(numbers_or_null.to_numpy().copy()).long()
    return classes, labels
