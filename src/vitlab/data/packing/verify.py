"""Verify a packed set, or index a WebDataset from elsewhere so that `data=shards` reads it."""

import io
import logging
import re
import tarfile
import time
import zlib
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config.schema import Node
from vitlab.data.packing import manifest
from vitlab.data.packing.manifest import NotShardedData
from vitlab.data.packing.pack import folder_lock
from vitlab.data.scan import listed
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD
from vitlab.storage.remote import Storage

log = logging.getLogger(__name__)

SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "pgm", "tif", "tiff")
WORDS = {"train": {"train"}, "val": {"val", "validation", "valid"}, "test": {"test"}}
LETTERS = re.compile(r"[^\W\d_]+")
LABELS = ("cls", "cls.txt", "label", "label.txt")


def verify(folder: Path) -> Node:
    """Compare every checksum of a packed set, and return the command's results. Raises `NotShardedData`."""
    start = time.monotonic()
    content = manifest.read_manifest(Storage(str(folder)))
    manifest.check_files(folder, content, checksums=True)
    log.info("every checksum is right")
    return manifest.log_results(content, seconds=time.monotonic() - start)


def index(folder: Path) -> Node:
    """Write `SPLIT.index.npy` and `prepared.json` next to a WebDataset's tar files, which stay as they are.

    An image is a member whose suffix says so, its class the number in the member of the same name and the suffix .cls.
    Names of classes are read from `classes.txt` there, a line each; without that file they are the numbers.

    Raises:
        NotShardedData: a sample has no image, two, or no class; a tar file is damaged.
    """
    start = time.monotonic()
    with folder_lock(folder):
        files = split_files(folder)
        if others := sorted({*folder.glob("*.tar")}.difference(*files.values())):
            log.warning("skipped, as their names have no split's word: %s", listed([file.name for file in others]))
        tables, shards = dict[str, np.ndarray[Any, Any]](), dict[str, list[Node]]()
        for split in files:
            parts, shards[split] = list[np.ndarray[Any, Any]](), []
            for number, file in enumerate(files[split]):
                part = tar_entries(file)
                part["shard"] = number
                part["row"] = np.arange(len(part)) + sum(map(len, parts))
                parts.append(part)
                name, size = file.relative_to(folder).as_posix(), file.stat().st_size
                sha256 = manifest.file_sha256(file)
                shards[split].append({"file": name, "images": len(part), "bytes": size, "sha256": sha256})
                log.info("%s: %d images", name, len(part))
            tables[split] = np.concatenate(parts)
        classes = class_names(folder, 1 + max(int(table["label"].max()) for table in tables.values()))
        content = manifest.write_manifest(
            folder,
            name=folder.resolve().name,
            classes=classes,
            mean=list(IMAGENET_MEAN),
            std=list(IMAGENET_STD),
            broken=0,
            splits={s: manifest.write_index(folder, s, table, shards[s], classes) for s, table in tables.items()},
        )
    return manifest.log_results(content, seconds=time.monotonic() - start, images=sum(map(len, tables.values())))


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The tar files of each split, by the folder that holds them or by a word of their names; empty without train.

    Raises `NotShardedData` for a file whose name has the words of two splits.
    """
    files: dict[str, list[Path]] = {}
    for split, words in WORDS.items():
        inside = [file for word in words for file in (folder / word).glob("*.tar")]
        by_name = [file for file in folder.glob("*.tar") if not words.isdisjoint(LETTERS.findall(file.name.lower()))]
        if inside or by_name:
            files[split] = sorted(inside or by_name)
    for one, two in combinations(files, 2):
        if both := sorted({*files[one]} & {*files[two]}):
            raise NotShardedData(
                f"data_dir={folder}: {both[0].name} has the words of two splits in its name, {one} and {two}; rename "
                f"it, or move the files of each split into a folder {one} or {two}"
            )
    if "val" in files and "test" not in files:
        files["test"] = files.pop("val")  # as ImageNet is published
    return files if "train" in files else {}


def tar_entries(file: Path) -> np.ndarray[Any, Any]:
    """The images of a tar file, in order, as rows of `manifest.ENTRY`. Raises `NotShardedData`."""
    images: dict[str, tuple[int, int, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                parent, _, last = member.name.rpartition("/")
                stem, _, suffix = last.partition(".")
                key, suffix = f"{parent}/{stem}".lstrip("/"), suffix.lower()
                if suffix in SUFFIXES:
                    if key in images:
                        raise NotShardedData(f"{file} has two images for the sample {key}")
                    data = member_bytes(tar, member)
                    images[key] = member.offset_data, member.size, zlib.crc32(data), manifest.kind_of(data)
                elif suffix in LABELS:
                    labels[key] = int(member_bytes(tar, member))
    except NotShardedData:
        raise
    except (tarfile.TarError, ValueError, OSError) as error:
        raise NotShardedData(f"{file} can't be read ({error})") from error
    if missing := [key for key in images if key not in labels]:
        raise NotShardedData(
            f"{file}: {len(missing)} of {len(images)} images have no class next to them (.cls), the first {missing[0]}"
        )
    if not images:
        raise NotShardedData(f"{file} has no images; remove it")
    table = np.zeros(len(images), manifest.ENTRY)
    for entry, (key, (offset, size, crc, kind)) in zip(table, images.items(), strict=True):
        if labels[key] < 0:
            raise NotShardedData(f"{file}: the class of {key} is {labels[key]}; classes begin with 0")
        entry["offset"], entry["size"], entry["crc"], entry["kind"] = offset, size, crc, kind
        entry["label"] = labels[key]
    return table


def member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    return (tar.extractfile(member) or io.BytesIO()).read()


def class_names(folder: Path, count: int) -> list[str]:
    """`classes.txt`, or numbers. Raises `NotShardedData` where it has too few."""
    file = folder / "classes.txt"
    if not file.is_file():
        return [str(number) for number in range(count)]
    names = file.read_text(encoding="utf-8").splitlines()
    if len(names) < count:
        raise NotShardedData(f"{file} names {len(names)} classes, and the labels go up to {count - 1}")
    return names
