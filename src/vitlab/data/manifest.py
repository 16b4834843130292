"""What a packed data set says of itself: `prepared.json`, and for each split where each image lies, `SPLIT.index.npy`.

`prepared.json` is written last, so a folder that has it is whole. It names classes, counts, sizes and the checksum of
every shard; nothing in it depends on when, or on how many processors, the set was packed.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.data.storage import Storage
from vitlab.schema import Node

NAME = "prepared.json"
WORK = ".prepare"  # where packing keeps what isn't whole yet
VERSION = 1
FORMATS = ("litdata", "webdataset", "folder")
SPLITS = ("train", "val", "test")
# What packing and indexing name a shard: a file, or one in a folder. Others could lie anywhere on this machine.
SHARD = re.compile(r"([^./\\\0][^/\\\0]*/)?[^./\\\0][^/\\\0]*\.(bin|tar)")
# One row for each image, in the order of the split.
ENTRY = np.dtype(
    [
        ("shard", "<u4"),  # which of the split's files
        ("offset", "<u8"),  # where in that file the image begins; with to=folder, the number in its own file's name
        ("size", "<u4"),  # its bytes
        ("crc", "<u4"),  # zlib.crc32 of them
        ("label", "<u4"),
        ("row", "<u4"),  # which image of the split that was packed
        ("kind", "u1"),  # of KINDS
    ]
)
KINDS = ("jpg", "png", "webp", "bmp", "gif", "ppm", "tif")


class NotPrepared(ValueError):
    """A folder holds no packed data set that can be read; the message names what to do."""


def kind_of(data: bytes) -> int:
    """Which of `KINDS` an encoded image is, by its first bytes."""
    starts = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"P")
    return next((number for number, start in enumerate(starts) if data.startswith(start)), len(starts))


def index_file(split: str) -> str:
    """The name of a split's index."""
    return f"{split}.index.npy"


def read(storage: Storage) -> Node:
    """The manifest of a packed data set. Raises `NotPrepared`."""
    try:
        content = json.loads(storage.described(NAME))
    except FileNotFoundError:
        raise NotPrepared(missing(storage.folder)) from None
    except OSError as error:
        raise NotPrepared(f"data_dir={storage.place} can't be read: {error}") from error
    except ValueError as error:
        raise NotPrepared(f"data_dir={storage.place}: {NAME} is damaged ({error}); pack the set again") from error
    version = content.get("vitlab") if isinstance(content, dict) else None
    if version != VERSION:
        raise NotPrepared(
            f"data_dir={storage.place}: {NAME} is of version {version}, and this vitlab reads version {VERSION}; pack "
            f"the set again with src/prepare.py"
        )
    assert isinstance(content, dict)
    check_names(content, storage.place)
    if content["format"] == "folder":
        raise NotPrepared(f"data_dir={storage.place} holds folders of images, no shards; use data=image_folder")
    return content


def check_names(content: Node, place: str) -> None:
    """Raises `NotPrepared` for names of splits and shards that packing doesn't write: they may come from anywhere."""
    for split, described in content.get("splits", {}).items():
        if split not in SPLITS:
            raise NotPrepared(
                f"data_dir={place}: {NAME} names a split {split!r}, and there are {', '.join(SPLITS)}; it was made by "
                f"something else, so pack the set again"
            )
        for shard in described["shards"]:
            file, folders = shard["file"], content["format"] == "folder"
            if file != "" if folders else not (isinstance(file, str) and SHARD.fullmatch(file)):
                raise NotPrepared(
                    f"data_dir={place}: {NAME} names a shard {file!r} in {split}, which is no .bin or .tar file in the "
                    f"set's folder or one below it; it was made by something else, so pack the set again"
                )


def missing(folder: Path) -> str:
    """Why a folder without a manifest can't be read, and what to do about it."""
    what = f"data_dir={folder} is no packed data set (it has no {NAME})"
    if not folder.is_dir():
        return f"data_dir={folder} is no folder; data=shards wants one that src/prepare.py made"
    if (folder / WORK).is_dir():
        return f"{what}: packing it was cut off; the same command of src/prepare.py goes on"
    if any(folder.glob("*.tar")) or any(folder.glob("*/*.tar")):
        return f"{what}; of a WebDataset from elsewhere, `python src/prepare.py index={folder}` makes it one"
    if any(folder.glob("index.json")) or any(folder.glob("*/index.json")):
        return f"{what}; of LitData's, those that src/prepare.py packed are read: pack the images themselves"
    if not any(folder.iterdir()):
        return f"{what}: it is empty; `python src/prepare.py data=image_folder data_dir=IMAGES out={folder}` makes one"
    packs = (
        f"`python src/prepare.py data=image_folder data_dir={folder} out={folder}-packed` packs images that lie there"
    )
    return f"{what}; {packs}, and data=image_folder reads them as they are"


def table(storage: Storage, manifest: Node, split: str, *, check: bool = True) -> np.ndarray[Any, Any]:
    """A split's index, mapped into memory: an array of `ENTRY`. Raises `NotPrepared`."""
    file = storage.local(index_file(split))
    try:
        found: np.ndarray[Any, Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        if found.dtype != ENTRY or found.shape != (manifest["splits"][split]["images"],):
            raise ValueError("it is of another data set")
        if check and digest(file) != manifest["splits"][split]["index"]:
            raise ValueError("its checksum is wrong")
    except (OSError, ValueError, EOFError) as error:
        raise NotPrepared(
            f"data_dir={storage.place}: {index_file(split)} can't be used ({error}); pack the set again"
        ) from error
    return found


def digest(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def class_folders(classes: Sequence[str]) -> list[str]:
    """With to=folder, each class's folder: its name, less what can't be in one. Raises `ValueError` for two alike."""
    folders = [re.sub(r"[/\\\0]|^\.", "_", name) for name in classes]
    if len(set(folders)) < len(folders):
        twice = next(name for name in folders if folders.count(name) > 1)
        raise ValueError(f"to=folder: two classes would have the folder {twice!r}; use to=litdata or webdataset")
    return folders


def image_file(root: Path, split: str, folders: Sequence[str], entry: Any) -> Path:
    """With to=folder, where an image lies: `folders` are the classes'."""
    return root / split / folders[int(entry["label"])] / f"{int(entry['offset']):09d}.{KINDS[int(entry['kind'])]}"


def faults(
    folder: Path, content: Node, *, whole: bool, told: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[str]:
    """What is wrong with the files of a packed set in a folder: a line for each that is missing or was changed.

    `whole` reads them and compares checksums; otherwise their sizes are looked at. `told` hears how many bytes of how
    many were looked at.
    """
    done, total = 0, sum(split["bytes"] for split in content["splits"].values())
    for name, split in content["splits"].items():
        index = folder / index_file(name)
        if not index.is_file() or (whole and digest(index) != split["index"]):
            yield f"{index.name}: {'its checksum is wrong' if index.is_file() else 'it is missing'}"
            continue
        if content["format"] == "folder":
            entries, start = np.load(index, mmap_mode="r", allow_pickle=False), 0
            folders = class_folders(content["classes"])
            for shard in split["shards"]:
                found = hashlib.sha256()
                for entry in entries[start : start + shard["images"]]:
                    file = image_file(folder, name, folders, entry)
                    if not file.is_file() or file.stat().st_size != entry["size"]:
                        state = "it has another size" if file.is_file() else "it is missing"
                        yield f"{file.relative_to(folder)}: {state}"
                    elif whole:
                        found.update(file.read_bytes())
                if whole and found.hexdigest() != shard["sha256"]:
                    yield f"{name}, images {start} to {start + shard['images'] - 1}: their checksum is wrong"
                start, done = start + shard["images"], done + shard["bytes"]
                told(done, total)
            continue
        for shard in split["shards"]:
            file = folder / shard["file"]
            if not file.is_file():
                yield f"{shard['file']}: it is missing"
            elif (size := os.stat(file).st_size) != shard["bytes"]:  # noqa: PTH116 many thousands
                yield f"{shard['file']}: it has {size:,} bytes instead of {shard['bytes']:,}"
            elif whole and digest(file) != shard["sha256"]:
                yield f"{shard['file']}: its checksum is wrong"
            done += shard["bytes"]
            told(done, total)
