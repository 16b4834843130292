"""The manifest of a packed data set, `prepared.json`, and per split an index of its images, `SPLIT.index.npy`.

`prepared.json` is written last, so a folder that has it is complete. It names classes, counts, sizes and the checksum
of every shard; nothing in it depends on when, or on how many processors, the set was packed.
"""

import io
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config.schema import Node
from vitlab.data.scan import bullets
from vitlab.storage.atomic import atomic_write, file_sha256
from vitlab.storage.remote import Storage

log = logging.getLogger(__name__)

NAME = "prepared.json"
WORK = ".prepare"  # the folder of unfinished packing
VERSION = 1
SPLITS = ("train", "val", "test")
# A shard's name as packing and indexing write it: a file, or one in a folder. Other names could be of any file of this
# machine. (.bin: sets packed before the tar format was the only one; an index finds images in either.)
SHARD = re.compile(r"([^./\\\0][^/\\\0]*/)?[^./\\\0][^/\\\0]*\.(tar|bin)")
# The first bytes of images, by the suffix of their files.
STARTS = {"jpg": b"\xff\xd8", "png": b"\x89PNG", "webp": b"RIFF", "bmp": b"BM", "gif": b"GIF8", "ppm": b"P", "tif": b""}
# One row per image, in the order of the split.
ENTRY = np.dtype(
    [
        ("shard", "<u4"),  # which of the split's files
        ("offset", "<u8"),  # of the image in that file
        ("size", "<u4"),  # its bytes
        ("crc", "<u4"),  # zlib.crc32 of them
        ("label", "<u4"),
        ("row", "<u4"),  # which image of the split that was packed
        ("kind", "u1"),  # of STARTS
    ]
)
Table = np.ndarray[Any, Any]  # of ENTRY


class NotShardedData(ValueError):
    """A folder holds no packed data set that can be read; the message names the remedy."""


def index_file(split: str) -> str:
    return f"{split}.index.npy"


def write_table(file: Path, table: Table) -> None:
    np.save(content := io.BytesIO(), table, allow_pickle=False)
    atomic_write(file, content.getvalue())


def write_manifest(
    folder: Path, shards: Mapping[str, Sequence[tuple[Table, Node]]], *, classes: Sequence[str], **content: Any
) -> Node:
    """Write the indices, then `prepared.json`; `shards` has each shard's table, `file`, `images`, `bytes`, `sha256`."""
    splits: Node = {}
    for split, parts in shards.items():
        for number, (part, _) in enumerate(parts):
            part["shard"] = number
        table = np.concatenate([np.zeros(0, ENTRY), *(part for part, _ in parts)])
        write_table(file := folder / index_file(split), table)
        splits[split] = {
            "images": len(table),
            "bytes": sum(shard["bytes"] for _, shard in parts),
            "index": file_sha256(file),
            "classes": dict(zip(classes, np.bincount(table["label"], minlength=len(classes)).tolist(), strict=True)),
            "shards": [shard for _, shard in parts],
        }
    content = {"vitlab": VERSION, **content, "classes": list(classes), "splits": splits}
    atomic_write(folder / NAME, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return content


def log_results(content: Node, *, seconds: float, images: int = 0) -> Node:
    """Log a packed set, a line per split, and return the results of a command that packed `images` of it."""
    results: Node = {"broken": content["broken"], "seconds": round(seconds, 1)}
    log.info("%-6s %10s %8s %7s   %s", "split", "images", "MB", "shards", "images of a class")
    for name, split in content["splits"].items():
        counts, shards = list(split["classes"].values()), len(split["shards"])
        spread = f"{min(counts)} to {max(counts)} in {len(counts)} classes"
        log.info("%-6s %10d %8.1f %7d   %s", name, split["images"], split["bytes"] / 1e6, shards, spread)
        results |= {f"{name}/images": split["images"], f"{name}/bytes": split["bytes"], f"{name}/shards": shards}
    rate = f", {images / seconds:.0f} images a second" if images and seconds else ""
    log.info("%d broken; %.1f s%s", content["broken"], seconds, rate)
    return results


def read_manifest(storage: Storage) -> Node:
    """The manifest of a packed data set. Raises `NotShardedData`."""
    set_name = f"data_dir={storage.place}"
    try:
        content = json.loads(storage.read_description(NAME))
    except FileNotFoundError:
        raise NotShardedData(missing_manifest(storage.folder)) from None
    except OSError as error:
        raise NotShardedData(f"{set_name} can't be read: {error}") from error
    except ValueError as error:
        raise NotShardedData(f"{set_name}: {NAME} is damaged ({error}); pack the set again") from error
    version = content.get("vitlab") if isinstance(content, dict) else None
    if not isinstance(content, dict) or version != VERSION:
        versions = f"has version {version}, and this vitlab reads version {VERSION}"
        raise NotShardedData(f"{set_name}: {NAME} {versions}; pack the set again with src/prepare.py")
    for name, split in content.get("splits", {}).items():  # a manifest from elsewhere may name any file
        if name not in SPLITS:
            wrong = f"a split {name!r}, and there are {', '.join(SPLITS)}"
            raise NotShardedData(f"{set_name}: {NAME} names {wrong}; pack the set again")
        for file in (shard["file"] for shard in split["shards"]):
            if not SHARD.fullmatch(str(file)):
                wrong = f"a shard {file!r} in {name}, which is not a .tar file in the set's folder or one below it"
                raise NotShardedData(f"{set_name}: {NAME} names {wrong}; pack the set again")
    return content


def missing_manifest(folder: Path) -> str:
    """Why a folder without a manifest can't be read, and the remedy."""
    if not folder.is_dir():
        return f"data_dir={folder} is no folder; data=shards wants one that src/prepare.py made"
    what = f"data_dir={folder} is no packed data set (it has no {NAME})"
    if (folder / WORK).is_dir():
        return f"{what}: packing it was interrupted; the same command of src/prepare.py resumes it"
    if any(folder.glob("*.tar")) or any(folder.glob("*/*.tar")):
        return f"{what}; `python src/prepare.py index data_dir={folder}` makes one of a WebDataset from elsewhere"
    command = f"`python src/prepare.py data=image_folder data_dir={folder} out={folder}-packed`"
    return f"{what}; {command} packs images of that folder, and data=image_folder reads them as they are"


def load_index(storage: Storage, content: Node, split: str) -> "np.memmap[Any, Any]":
    """A split's index, mapped into memory. Raises `NotShardedData`."""
    expected = content["splits"][split]
    try:
        file = storage.local_file(index_file(split))
        table: np.memmap[Any, Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        if table.dtype != ENTRY or table.shape != (expected["images"],):
            raise ValueError("it is of another data set")
        if file_sha256(file) != expected["index"]:
            raise ValueError("its checksum is wrong")
    except (OSError, ValueError, EOFError) as error:
        problem = f"{index_file(split)} can't be used ({error}); pack the set again"
        raise NotShardedData(f"data_dir={storage.place}: {problem}") from error
    return table


def check_files(folder: Path, content: Node, *, checksums: bool) -> None:
    """Raise `NotShardedData` with every file of a packed set that is missing, or has another size or checksum."""
    damage = list[str]()
    done, total = 0, sum(split["bytes"] for split in content["splits"].values())
    start = last = time.monotonic()
    for name, split in content["splits"].items():
        index = folder / index_file(name)
        if not index.is_file() or (checksums and file_sha256(index) != split["index"]):
            damage.append(f"{index.name}: {'its checksum is wrong' if index.is_file() else 'it is missing'}")
        for shard in split["shards"]:
            file = folder / shard["file"]
            if not file.is_file():
                damage.append(f"{shard['file']}: it is missing")
            elif (size := os.stat(file).st_size) != shard["bytes"]:  # noqa: PTH116 many thousands
                damage.append(f"{shard['file']}: it has {size:,} bytes instead of {shard['bytes']:,}")
            elif checksums and file_sha256(file) != shard["sha256"]:
                damage.append(f"{shard['file']}: its checksum is wrong")
            done += shard["bytes"]
            if (now := time.monotonic()) - last > 10:
                last = now
                log.info("checked %.1f of %.1f GB in %.0f s", done / 1e9, total / 1e9, now - start)
    if damage:
        raise NotShardedData(f"data_dir={folder} isn't what was packed; copy it again:{bullets(damage)}")
