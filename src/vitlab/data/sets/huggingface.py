"""Image classification sets of the Hugging Face Hub, or local ones, read with the library `datasets`.

`huggingface_index` resolves name, splits and columns before any download. Then the set is downloaded and mapped into
memory: each row has a number and all labels are known at the start, as exact evaluation and resuming need.
`datasets.IterableDataset` can't give that: its ranks get files of unequal length, and its order depends on the number
of workers. No code of a set is run: `datasets` 4 and later has no scripts.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vitlab.config.bounds import Fraction, check_bounds
from vitlab.config.schema import Node
from vitlab.data.sets.huggingface_index import DatasetNotFound, choose_columns, choose_splits, resolve_dataset
from vitlab.data.sets.huggingface_tables import class_labels, load_tables
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD, Facts, Source, Split

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
    train, val, test = choose_splits(resolved, train_split, val_split, test_split)
    chosen = [split for split in (train, val, test) if split]
    tables = load_tables(resolved, chosen, image_column, label_column)
    hidden = {split for split, table in tables.items() if table.missing_labels == len(table.labels)}
    if test in hidden and test_split is None:
        instead = None if val_split else val
        log.info("%s: the labels of %s are hidden; test split: %s", resolved.name, test, instead or HELD_OUT)
        val, test = (val if val_split else None), instead
    if val in hidden and val_split is None:
        val = None
    used = {split: table for split, table in tables.items() if split in (train, val, test)}
    classes, labels = class_labels(resolved, used, train)
    splits = {split: Split(None, labels[split], table.rows) for split, table in used.items()}
    version, names = f" at {resolved.version}" if resolved.version else "", (train, val or HELD_OUT, test or HELD_OUT)
    log.info("%s%s: train split %s, validation %s, test %s", resolved.name, version, *names)
    training, testing = splits[train], splits[test] if test else None
    if testing is None:
        training, testing = hold_out(training, test_fraction, seed=0, knob="data.source.test_fraction")
    facts = (resolved.short, classes, 3, IMAGENET_MEAN, IMAGENET_STD, None)
    return Source(*facts, training, testing, val=splits[val] if val else None)
