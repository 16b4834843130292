"""Verify a packed set, or index a WebDataset from elsewhere so that `data=shards` reads it."""

import logging
import time
from pathlib import Path

from vitlab.config.schema import Node
from vitlab.data.packing import manifest
from vitlab.data.packing.manifest import NotShardedData, Table
from vitlab.data.packing.pack import folder_lock
from vitlab.data.packing.shard_writer import read_tar
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD
from vitlab.storage.remote import Storage

log = logging.getLogger(__name__)


def verify(folder: Path) -> Node:
    """Compare every checksum of a packed set, and return the command's results. Raises `NotShardedData`."""
    start = time.monotonic()
    content = manifest.read_manifest(Storage(str(folder)))
    manifest.check_files(folder, content, checksums=True)
    log.info("all checksums are right")
    return manifest.log_results(content, seconds=time.monotonic() - start)


def index(folder: Path) -> Node:
    """Write `SPLIT.index.npy` and `prepared.json` next to a WebDataset's tar files. Raises `NotShardedData`.

    `classes.txt` names the classes, one per line; without it, the names are the numbers.
    """
    start = time.monotonic()
    with folder_lock(folder):
        shards: dict[str, list[tuple[Table, Node]]] = {}
        for split, files in split_files(folder).items():
            shards[split] = [read_tar(file, file.relative_to(folder).as_posix()) for file in files]
            log.info("%s: read %d tar files", split, len(files))
        highest = max(int(table["label"].max()) for parts in shards.values() for table, _ in parts)
        classes = [str(number) for number in range(1 + highest)]
        if (file := folder / "classes.txt").is_file():
            classes = file.read_text(encoding="utf-8").splitlines()
            if len(classes) <= highest:
                raise NotShardedData(f"{file} names {len(classes)} classes, and the labels go up to {highest}")
        about: Node = {"name": folder.resolve().name, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "broken": 0}
        content = manifest.write_manifest(folder, shards, classes=classes, **about)
    images = sum(split["images"] for split in content["splits"].values())
    return manifest.log_results(content, seconds=time.monotonic() - start, images=images)


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The tar files in the folders train, val and test. Raises `NotShardedData`."""
    if (folder / manifest.NAME).is_file():
        remedy = "remove that file to replace it"
        raise NotShardedData(f"data_dir={folder} has an index already ({manifest.NAME}); {remedy}")
    files = {split: tars for split in manifest.SPLITS if (tars := sorted((folder / split).glob("*.tar")))}
    if "val" in files and "test" not in files:
        files["test"] = files.pop("val")  # as ImageNet is published
    if "train" not in files:
        expected = "move those of each split into a folder: train/*.tar, and val or test"
        raise NotShardedData(f"data_dir={folder} has no tar files of a train split; {expected}")
    return files
