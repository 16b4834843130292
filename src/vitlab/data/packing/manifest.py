"""The manifest of a packed set, `prepared.json`, and the index of each split's images, `SPLIT.index.npy`.

`prepared.json` has classes, counts, sizes and the checksum of every shard. It is written last, so a folder that has it
is complete. The same images and settings give the same bytes.
"""

import io
import json
import logging
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
WORK = ".prepare"  # folder of unfinished packing
VERSION = 1
SPLITS = ("train", "val", "test")
# A file in the set's folder, or in a folder there; other names could be of any file of this machine. (.bin: shards of
# version 0.0, which are read by the same index.)
SHARD = re.compile(r"([^./\\\0][^/\\\0]*/)?[^./\\\0][^/\\\0]*\.(tar|bin)")
# The first bytes of images, by file suffix
STARTS = {"jpg": b"\xff\xd8", "png": b"\x89PNG", "webp": b"RIFF", "bmp": b"BM", "gif": b"GIF8", "ppm": b"P", "tif": b""}
# An image: number of its shard, offset and size there, zlib.crc32, label, number in the source's split and in STARTS
NAMES = ("shard", "offset", "size", "crc", "label", "row", "kind")
ENTRY = np.dtype(list(zip(NAMES, ("<u4", "<u8", "<u4", "<u4", "<u4", "<u4", "u1"), strict=True)))
Table = np.ndarray[Any, Any]  # of ENTRY


class NotShardedData(ValueError):
    """A folder has no packed set that can be read."""


def write_table(file: Path, table: Table) -> None:
    np.save(content := io.BytesIO(), table, allow_pickle=False)
    atomic_write(file, content.getvalue())


def write_manifest(
    folder: Path, shards: Mapping[str, Sequence[tuple[Table, Node]]], *, classes: Sequence[str], **content: Any
) -> Node:
    """Write the indices, then `prepared.json`; `shards` has the table and the entry of each shard."""
    splits: Node = {}
    for split, parts in shards.items():
        for number, (part, _) in enumerate(parts):
            part["shard"] = number
        table = np.concatenate([np.zeros(0, ENTRY), *(part for part, _ in parts)])
        write_table(file := folder / f"{split}.index.npy", table)
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
    """Log a packed set, a line per split, and return the results of a command that read `images` of it."""
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
    """The manifest of a packed set. Raises `NotShardedData`."""
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
    if version != VERSION:
        versions = f"has version {version}, and this vitlab reads version {VERSION}"
        raise NotShardedData(f"{set_name}: {NAME} {versions}; pack the set again with src/prepare.py")
    for name, split in content.get("splits", {}).items():  # a manifest from elsewhere may name any file
        wrong = None if name in SPLITS else f"a split {name!r}, and there are {', '.join(SPLITS)}"
        for file in (shard["file"] for shard in split["shards"]):
            if not SHARD.fullmatch(str(file)):
                wrong = f"a shard {file!r} in {name}, which is not a .tar file in the set's folder or one below it"
        if wrong is not None:
            raise NotShardedData(f"{set_name}: {NAME} names {wrong}; pack the set again")
    return dict(content)


def missing_manifest(folder: Path) -> str:
    """Why a folder without a manifest can't be read, and the remedy."""
    if not folder.is_dir():
        return f"data_dir={folder} is no folder; data=shards needs one that src/prepare.py made"
    problem = f"data_dir={folder} is no packed data set (it has no {NAME})"
    if (folder / WORK).is_dir():
        return f"{problem}: packing it was interrupted; the same command of src/prepare.py resumes it"
    if any(folder.glob("*.tar")) or any(folder.glob("*/*.tar")):
        command = f"`python src/prepare.py data=huggingface data.name={folder} out={folder}-packed`"
        return f"{problem}; {command} packs a WebDataset from elsewhere"
    command = f"`python src/prepare.py data=image_folder data_dir={folder} out={folder}-packed`"
    return f"{problem}; {command} packs images of that folder, and data=image_folder reads them as they are"


def load_index(storage: Storage, content: Node, split: str) -> "np.memmap[Any, Any]":
    """A split's index, mapped into memory. Raises `NotShardedData`."""
    expected = content["splits"][split]
    try:
        file = storage.local_file(f"{split}.index.npy")
        table: np.memmap[Any, Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        if table.dtype != ENTRY or table.shape != (expected["images"],):
            raise ValueError("it is of another data set")
        if file_sha256(file) != expected["index"]:
            raise ValueError("its checksum is wrong")
    except (OSError, ValueError, EOFError) as error:
        problem = f"{split}.index.npy can't be used ({error}); pack the set again"
        raise NotShardedData(f"data_dir={storage.place}: {problem}") from error
    return table


def check_files(folder: Path, content: Node, *, checksums: bool) -> None:
    """Raise `NotShardedData` with every file of a packed set that is missing, or has another size or checksum."""
    indices = [(f"{name}.index.npy", None, split["index"]) for name, split in content["splits"].items()]
    shards = [shard for split in content["splits"].values() for shard in split["shards"]]
    files = [*indices, *((shard["file"], shard["bytes"], shard["sha256"]) for shard in shards)]
    damage, last = list[str](), time.monotonic()
    for number, (name, size, checksum) in enumerate(files):
        if not (file := folder / name).is_file():
            damage.append(f"{name}: it is missing")
        elif size is not None and file.stat().st_size != size:
            damage.append(f"{name}: it has {file.stat().st_size:,} bytes instead of {size:,}")
        elif checksums and file_sha256(file) != checksum:
            damage.append(f"{name}: its checksum is wrong")
        if (now := time.monotonic()) - last > 10:
            last = now
            log.info("checked %d of %d files", number + 1, len(files))
    if damage:
        raise NotShardedData(f"data_dir={folder} isn't what was packed; copy it again:{bullets(damage)}")
