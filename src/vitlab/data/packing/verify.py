"""Verify a packed set, or index a WebDataset from elsewhere so that `data=shards` reads it."""

import logging
import re
import time
from pathlib import Path

from vitlab.config.schema import Node
from vitlab.data.packing import manifest
from vitlab.data.packing.manifest import NotShardedData, Table
from vitlab.data.packing.pack import folder_lock
from vitlab.data.packing.shard_writer import read_tar
from vitlab.data.scan import bullets
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD
from vitlab.storage.remote import Storage

log = logging.getLogger(__name__)

WORDS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
LETTERS = re.compile(r"[^\W\d_]+")


def verify(folder: Path) -> Node:
    """Compare every checksum of a packed set, and return the command's results. Raises `NotShardedData`."""
    start = time.monotonic()
    content = manifest.read_manifest(Storage(str(folder)))
    manifest.check_files(folder, content, checksums=True)
    log.info("every checksum is right")
    return manifest.log_results(content, seconds=time.monotonic() - start)


def index(folder: Path) -> Node:
    """Write `SPLIT.index.npy` and `prepared.json` next to a WebDataset's tar files. Raises `NotShardedData`.

    Names of classes are read from `classes.txt` there, a line each; without that file they are the numbers.
    """
    start = time.monotonic()
    with folder_lock(folder):
        files, shards = split_files(folder), dict[str, list[tuple[Table, Node]]]()
        if skipped := sorted({*folder.glob("*/*.tar"), *folder.glob("*.tar")}.difference(*files.values())):
            log.warning(
                "skipped, since their names contain no word for a split: %s", bullets([str(file) for file in skipped])
            )
        for split in files:
            shards[split] = []
            for file in files[split]:
                shards[split].append(read_tar(file, file.relative_to(folder).as_posix()))
                log.info("%s: %d images", file, len(shards[split][-1][0]))
        classes = [str(n) for n in range(1 + max(int(t["label"].max()) for part in shards.values() for t, _ in part))]
        if (file := folder / "classes.txt").is_file():
            names = file.read_text(encoding="utf-8").splitlines()
            if len(names) < len(classes):
                raise NotShardedData(f"{file} names {len(names)} classes, and the labels go up to {classes[-1]}")
            classes = names
        about: Node = {"name": folder.resolve().name, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "broken": 0}
        content = manifest.write_manifest(folder, shards, classes=classes, **about)
    images = sum(split["images"] for split in content["splits"].values())
    return manifest.log_results(content, seconds=time.monotonic() - start, images=images)


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The tar files of each split, by a word in their folder's name, else in their own. Raises `NotShardedData`."""
    if (folder / manifest.NAME).is_file():
        raise NotShardedData(
            f"data_dir={folder} has an index already ({manifest.NAME}); remove that file to replace it"
        )
    files: dict[str, list[Path]] = {}
    for pattern in ("*/*.tar", "*.tar"):
        in_folders = set(files)
        for file in sorted(folder.glob(pattern)):
            place = (file if pattern == "*.tar" else file.parent).name
            splits = {WORDS[word] for word in LETTERS.findall(place.lower()) if word in WORDS} - in_folders
            if len(splits) > 1:
                both = " and ".join(sorted(splits, reverse=True))
                remedy = "rename it, or move the files of each split into a folder of the split's name"
                raise NotShardedData(f"data_dir={folder}: {place} has the words of two splits, {both}; {remedy}")
            for split in splits:
                files.setdefault(split, []).append(file)
    if "val" in files and "test" not in files:
        files["test"] = files.pop("val")  # as ImageNet is published
    if "train" not in files:
        expected = "train/*.tar or ...-train-...tar there, with images next to numbers of classes (.cls)"
        raise NotShardedData(f"data_dir={folder} has no tar files of a train split; expected {expected}")
    return files
