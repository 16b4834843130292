"""Image classification sets as the library `datasets` reads them: from the Hugging Face Hub, or from local files.

The name, splits and columns of a set are looked up before any download (`huggingface_index`, which the checks call
too). Then it is either downloaded and mapped into memory, or, with `streaming`, read where it is stored. Both ways
every row has its number and every label is known from the start, so order, accounting and resuming are vitlab's own.
`datasets.IterableDataset` can't give that: its ranks get files of unequal length, its workers stop at different times,
and its shuffling depends on their number. No code of a set is ever run: `datasets` 4 and later has no scripts.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config.bounds import Fraction, PositiveInt, check_bounds
from vitlab.config.schema import Node
from vitlab.data.sets.huggingface_index import (
    DatasetNotFound,
    ResolvedDataset,
    choose_columns,
    choose_splits,
    first_line,
    is_parquet,
    resolve_dataset,
)
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD, Facts, Source, Split
from vitlab.data.tables import ArrowRows, Group, ParquetRows, open_parquet

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

THREADS = 16  # that wait for a network


def problems(*, streaming: bool, **settings: Any) -> Iterator[str]:
    """What is wrong with the settings, as far as the set's description says."""
    try:
        found = resolve_dataset(**{key: settings[key] for key in ("name", "subset", "revision", "cache_dir")})
        choose_splits(found, *(settings[f"{split}_split"] for split in ("train", "val", "test")))
        if found.columns is not None:
            choose_columns(found, found.columns, settings["image_column"], settings["label_column"])
        if streaming:
            parquet_files(found)
    except DatasetNotFound as error:
        yield str(error)


def label(source: Mapping[str, Any]) -> str:
    """`ylecun_mnist`, or the name of a local folder or file."""
    if not isinstance(name := source.get("name"), str):
        return "huggingface"
    is_local = name[0:1] in ("/", ".", "~") or Path(name).exists()
    text = Path(name).name.removesuffix(".parquet") if is_local else name
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", text).strip("_.") or "_"


def normalize(data: Node) -> Node:
    """The group without `data.name`, which its source has: of a local set as an absolute path, for other folders."""
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
    streaming: bool = False,
    shuffle_buffer: PositiveInt = 10_000,
    cache_dir: str | None = None,
) -> Source:
    """An image classification set of the Hugging Face Hub, or a local one in the formats of its library `datasets`.

    Args:
        name: OWNER/NAME on the Hub; or a folder that `save_to_disk` wrote, one of parquet files or of images, a parquet
            file, or a pattern or URL of parquet files.
        subset: Which configuration of the set, if it has several.
        revision: A commit, branch or tag on the Hub; None: the newest.
        image_column: None: the one column of images.
        label_column: None: the one column of class labels, else one called label.
        train_split: None: `train`, or the only one.
        val_split: None: `validation` if there is one next to `test`, else cut from train.
        test_split: None: `test`; `validation` if there is none with labels; else a `test_fraction` of train.
        test_fraction: Share of the images that becomes the test split, if the set has none.
        streaming: Read parquet files where they are stored, a row group at a time, instead of downloading them first.
        shuffle_buffer: Streamed images are drawn at random from about this many. As many encoded images, and at least
            two row groups, are in the memory of a machine's processes together.
        cache_dir: Where downloads are kept; None: where the Hub's library keeps them (`HF_HOME`).

    Raises:
        DatasetNotFound: there is no such set, split or column, or it can't be reached.
        ValueError: the labels can't be used.
    """
    from vitlab.data.splitting import hold_out

    found = resolve_dataset(name, subset=subset, revision=revision, cache_dir=cache_dir)
    train, val, test = choose_splits(found, train_split, val_split, test_split)
    load_tables = streamed_tables if streaming else mapped_tables
    tables = load_tables(found, [split for split in (train, val, test) if split], image_column, label_column)
    if test and test_split is None and tables[test].hidden == len(tables[test].labels):
        instead = None if val_split else val
        log.info("%s: the labels of %s are hidden; test split: %s", found.name, test, instead or "cut from train")
        val, test = (val if val_split else None), instead
    if val and val_split is None and tables[val].hidden == len(tables[val].labels):
        val = None
    used = {split: table for split, table in tables.items() if split in (train, val, test)}
    classes, labels = class_labels(found, used, train)
    splits = {split: Split(None, labels[split], table.rows(shuffle_buffer)) for split, table in used.items()}
    version, how = f" at {found.version}" if found.version else "", "streamed" if streaming else "mapped into memory"
    chosen = (train, val or "cut from train", test or "cut from train")
    log.info("%s%s: train split %s, validation %s, test %s, %s", found.name, version, *chosen, how)
    if test:
        training, testing = splits[train], splits[test]
    else:
        training, testing = hold_out(splits[train], test_fraction, seed=0, knob="data.source.test_fraction")
    facts = (found.short, classes, 3, IMAGENET_MEAN, IMAGENET_STD, None)
    return Source(*facts, training, testing, val=splits[val] if val else None, shuffle_buffer=shuffle_buffer)


@dataclass(frozen=True, eq=False)
class Table:
    """A split: its labels, and where its images are read from."""

    place: str
    labels: Any  # pyarrow.ChunkedArray
    kind: Any  # the labels' feature
    image: str  # the images' column
    dataset: Any = None  # datasets.Dataset
    files: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()

    @property
    def hidden(self) -> int:
        """Number of labels that are missing, or -1, as in sets of the Hub that keep them secret."""
        import pyarrow as pa
        import pyarrow.compute as pc

        missing = int(self.labels.null_count)
        if not pa.types.is_integer(self.labels.type) or not hasattr(self.kind, "names"):
            return missing
        return missing + int(pc.sum(pc.less(self.labels, 0)).as_py() or 0)

    def rows(self, buffer: int) -> ArrowRows | ParquetRows:
        """The images; of streamed ones about `buffer` are in use at a time."""
        import torch

        chosen = torch.arange(len(self.labels))
        if self.dataset is not None:
            return ArrowRows(self.place, self.dataset, self.image, chosen)
        return ParquetRows(self.place, self.files, self.image, self.groups, buffer, chosen)


def mapped_tables(found: ResolvedDataset, splits: list[str], image: str | None, label: str | None) -> dict[str, Table]:
    """Splits as Arrow tables on this machine's disk; missing ones are downloaded and prepared."""
    sets = found.saved
    if sets is None:
        try:
            found.builder.download_and_prepare()
            sets = {split: found.builder.as_dataset(split=split) for split in splits}
        except Exception as error:  # of networks, disks and files, as many kinds
            reason = f"{first_line(error)} {first_line(error.__cause__) if error.__cause__ else ''}".strip()
            raise DatasetNotFound(f"data.name={found.name} can't be loaded: {reason}") from error
    tables = {}
    for split in splits:
        dataset = sets[split]
        images, classes = choose_columns(found, dataset.features, image, label)
        labels = dataset.select_columns([classes]).with_format("arrow")[:].column(classes)
        tables[split] = Table(f"{found.short}/{split}", labels, dataset.features[classes], images, dataset=dataset)
    return tables


def parquet_files(found: ResolvedDataset) -> dict[str, tuple[str, ...]]:
    """The parquet files of each split. Raises `DatasetNotFound` if the set isn't made of such."""
    if found.builder is None:
        saved = "was written by save_to_disk and is mapped into memory anyway; use streaming=false"
        raise DatasetNotFound(f"data.source.streaming=true: {found.name} {saved}")
    if not is_parquet(found.builder):
        made_of = type(found.builder).__module__.split(".")[-1]
        on_hub = ", or data.source.revision=refs/convert/parquet, if the Hub has made that" if found.version else ""
        raise DatasetNotFound(
            f"data.source.streaming=true reads parquet files, and {found.name} is of the kind {made_of}; use "
            f"streaming=false{on_hub}"
        )
    return {str(split): tuple(map(str, files)) for split, files in found.builder.config.data_files.items()}


def streamed_tables(
    found: ResolvedDataset, splits: list[str], image: str | None, label: str | None
) -> dict[str, Table]:
    """Splits as row groups of parquet files: their positions and the column of labels are read, and no image."""
    import datasets
    import pyarrow as pa

    files, columns = parquet_files(found), found.columns
    assert isinstance(columns, datasets.Features), "parquet files describe themselves"
    image, label = choose_columns(found, columns, image, label)

    def read_groups(place: str) -> tuple[list[tuple[int, int]], Any]:
        file = open_parquet(place)
        missing = [name for name in (image, label) if name not in file.schema_arrow.names]
        if missing:
            raise DatasetNotFound(f"data.name={found.name}: {place} has no column {missing[0]}, which other files have")
        kind = datasets.Features.from_arrow_schema(file.schema_arrow)[label]
        if getattr(kind, "names", None) not in (None, getattr(columns[label], "names", None)):
            raise DatasetNotFound(f"data.name={found.name}: the classes of {place} have other names, or another order")
        groups = []
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            parts = [group.column(i) for i in range(group.num_columns)]
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
            raise DatasetNotFound(
                f"data.name={found.name}: a file of {split} can't be read ({first_line(error)})"
            ) from error
        groups, start = list[Group](), 0
        for file, (sizes, _) in enumerate(contents):
            for number, (rows, size) in enumerate(sizes):
                if rows:
                    groups.append(Group(file, number, start, rows, size))
                    start += rows
        labels = pa.chunked_array([chunk for _, column in contents for chunk in column.chunks], contents[0][1].type)
        name = f"{found.short}/{split}"
        tables[split] = Table(name, labels, columns[label], image, files=files[split], groups=tuple(groups))
    return tables


def class_labels(
    found: ResolvedDataset, tables: Mapping[str, Table], train: str
) -> tuple[tuple[str, ...], dict[str, "Tensor"]]:
    """Class names, and the labels of each split as their numbers, int64 [n].

    Labels without names, integers or strings, are themselves the classes, sorted: those of train. Raises `ValueError`
    for labels that are hidden or missing, or that train doesn't have.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import torch

    names = getattr(tables[train].kind, "names", None)
    for split, table in tables.items():
        if hidden := table.hidden:
            raise ValueError(
                f"{found.name}: {hidden} of the {len(table.labels)} labels of the split {split} are -1 or missing, as "
                f"where they are kept secret; choose another with data.source.{{train,val,test}}_split"
            )
        if getattr(table.kind, "names", None) != names:
            raise ValueError(
                f"{found.name}: the classes of the split {split} have other names, or another order, than {train}'s"
            )
    if names is not None:
        numbers = {split: torch.from_numpy(table.labels.to_numpy().copy()).long() for split, table in tables.items()}
        return tuple(map(str, names)), numbers
    values = sorted(pc.unique(tables[train].labels).to_pylist())
    if len(values) > len(tables[train].labels) / 2:
        raise ValueError(
            f"{found.name}: the column of labels has {len(values)} different values in {len(tables[train].labels)} "
            f"images, so these are no classes; name another with data.source.label_column"
        )
    first = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
    log.info("%s: its labels have no names; %d classes, sorted: %s", found.name, len(values), first)
    known = pa.array(values, tables[train].labels.type)
    labels = {}
    for split, table in tables.items():
        numbers_or_null = pc.index_in(table.labels.cast(known.type), value_set=known)
        if numbers_or_null.null_count:
            other = pc.filter(table.labels, pc.is_null(numbers_or_null))[0].as_py()
            raise ValueError(f"{found.name}: the split {split} has the label {other!r}, which {train} doesn't have")
        labels[split] = torch.from_numpy(numbers_or_null.to_numpy().copy()).long()
    return tuple(map(str, values)), labels
