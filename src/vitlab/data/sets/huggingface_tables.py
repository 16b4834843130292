"""The splits of a set as tables: their labels, and the rows with their images."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitlab.config.printable import format_names
from vitlab.data.sets.huggingface_index import DatasetNotFound, ResolvedDataset, choose_columns, first_line, is_parquet
from vitlab.data.tables import ArrowRows, Group, ParquetRows, open_parquet

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

THREADS = 16  # that wait for a network


@dataclass(frozen=True, eq=False)
class Table:
    """A split: its labels, and the rows with its images."""

    labels: Any  # pyarrow.ChunkedArray
    feature: Any  # of the labels
    rows: ArrowRows | ParquetRows

    @property
    def missing_labels(self) -> int:
        """Number of labels that are missing, or -1, as in sets of the Hub that keep them secret."""
        import pyarrow as pa
        import pyarrow.compute as pc

        missing = int(self.labels.null_count)
        if not pa.types.is_integer(self.labels.type) or not hasattr(self.feature, "names"):
            return missing
        return missing + int(pc.sum(pc.less(self.labels, 0)).as_py() or 0)


def mapped_tables(
    resolved: ResolvedDataset, splits: list[str], image: str | None, label: str | None
) -> dict[str, Table]:
    """Arrow tables on the local disk; missing ones are downloaded and prepared."""
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
        labels = dataset.select_columns([classes]).with_format("arrow")[:].column(classes)
        rows = ArrowRows(f"{resolved.short}/{split}", dataset, images, torch.arange(len(labels)))
        tables[split] = Table(labels, dataset.features[classes], rows)
    return tables


def parquet_files(resolved: ResolvedDataset) -> dict[str, tuple[str, ...]]:
    """The parquet files of each split. Raises `DatasetNotFound` if the set has none."""
    if resolved.builder is None:
        saved = "was written by save_to_disk and is mapped into memory anyway; use streaming=false"
        raise DatasetNotFound(f"data.source.streaming=true: {resolved.name} {saved}")
    if not is_parquet(resolved.builder):
        made_of = type(resolved.builder).__module__.split(".")[-1]
        on_hub = ", or data.source.revision=refs/convert/parquet, if the Hub has made that" if resolved.version else ""
        kind = f"{resolved.name} is of the kind {made_of}; use streaming=false{on_hub}"
        raise DatasetNotFound(f"data.source.streaming=true reads parquet files, and {kind}")
    return {str(split): tuple(map(str, files)) for split, files in resolved.builder.config.data_files.items()}


def streamed_tables(
    resolved: ResolvedDataset, splits: list[str], image: str | None, label: str | None, buffer: int
) -> dict[str, Table]:
    """Row groups of parquet files: their positions and the column of labels are read, but no image."""
    import datasets
    import pyarrow as pa
    import torch

    files, columns = parquet_files(resolved), resolved.columns
    assert isinstance(columns, datasets.Features), "parquet files describe themselves"
    image, label = choose_columns(resolved, columns, image, label)

    def read_groups(place: str) -> tuple[list[tuple[int, int]], Any]:
        file = open_parquet(place)
        if missing := {image, label}.difference(file.schema_arrow.names):
            column = f"no column {min(missing)}, which other files have"
            raise DatasetNotFound(f"data.name={resolved.name}: {place} has {column}")
        feature = datasets.Features.from_arrow_schema(file.schema_arrow)[label]
        if getattr(feature, "names", None) not in (None, getattr(columns[label], "names", None)):
            other = f"the classes of {place} have other names, or another order"
            raise DatasetNotFound(f"data.name={resolved.name}: {other}")
        groups = []
        for group in map(file.metadata.row_group, range(file.num_row_groups)):
            parts = map(group.column, range(group.num_columns))
            size = sum(part.total_compressed_size for part in parts if part.path_in_schema.split(".")[0] == image)
            groups.append((group.num_rows, size))
        labels = file.read(columns=[label], use_threads=False).column(0)
        file.close()
        return groups, labels

    tables = {}
    for split in splits:
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                contents = list(pool.map(read_groups, files[split]))
        except (OSError, pa.ArrowException) as error:
            reason = f"a file of {split} can't be read ({first_line(error)})"
            raise DatasetNotFound(f"data.name={resolved.name}: {reason}") from error
        groups, start = list[Group](), 0
        for file, (sizes, _) in enumerate(contents):
            for number, (rows, size) in enumerate(sizes):
                groups += [Group(file, number, start, rows, size)] if rows else []
                start += rows
        labels = pa.chunked_array([chunk for _, column in contents for chunk in column.chunks], contents[0][1].type)
        place, chosen = f"{resolved.short}/{split}", torch.arange(len(labels))
        parquet = ParquetRows(place, files[split], image, tuple(groups), buffer, chosen)
        tables[split] = Table(labels, columns[label], parquet)
    return tables


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
