"""Packed sets of this machine looked through: a WebDataset from elsewhere gets an index, a set of ours is verified."""

import io
import json
import logging
import re
import tarfile
import time
import zlib
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.data import manifest
from vitlab.data.finishing import array_bytes, described, told
from vitlab.data.manifest import NotPrepared
from vitlab.data.packing import owned
from vitlab.data.scan import listed
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD
from vitlab.data.storage import Storage
from vitlab.runs import replace
from vitlab.schema import Node

log = logging.getLogger(__name__)

SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "pgm", "tif", "tiff")
WORDS = {"train": {"train"}, "val": {"val", "validation", "valid"}, "test": {"test"}}
LETTERS = re.compile(r"[^\W\d_]+")
LABELS = ("cls", "cls.txt", "label", "label.txt")


def problems(*, verify: str | None, index: str | None) -> Iterator[str]:
    """What is wrong with the folders that are to be looked through."""
    if verify is not None:
        try:
            content = json.loads((Path(verify) / manifest.NAME).read_text(encoding="utf-8"))
            if content.get("vitlab") != manifest.VERSION:
                yield f"verify={verify} holds a set of version {content.get('vitlab')}, not {manifest.VERSION}"
        except OSError:
            yield f"verify={verify} {unfinished(Path(verify))}"
        except (ValueError, AttributeError) as error:
            yield f"verify={verify}: {manifest.NAME} is damaged ({error})"
    if index is not None:
        if not Path(index).is_dir():
            yield f"index={index} is no folder; name the one of the tar files"
            return
        if (Path(index) / manifest.NAME).is_file():
            yield f"index={index} has an index already ({manifest.NAME}); remove that file to make it anew"
            return
        try:
            if not tars(Path(index)):
                yield (
                    f"index={index} has no tar files of a train split; expected train/*.tar or ...-train-...tar there, "
                    f"with images beside numbers of classes (.cls)"
                )
        except NotPrepared as error:
            yield str(error)


def unfinished(folder: Path) -> str:
    """Why a folder without a manifest can't be verified."""
    if not folder.is_dir():
        return "is no folder; name one that src/prepare.py made"
    what = f"is no packed data set: it has no {manifest.NAME}"
    if (folder / manifest.WORK).is_dir():
        return f"{what}, as packing it was cut off; the same command of src/prepare.py goes on"
    return what


def tars(folder: Path) -> dict[str, list[Path]]:
    """The tar files of each split, by the folder that they lie in or by a word of their names; empty without train.

    Raises `NotPrepared` for a file whose name has the words of two splits.
    """
    found: dict[str, list[Path]] = {}
    for split, words in WORDS.items():
        inside = [file for word in words for file in (folder / word).glob("*.tar")]
        beside = [file for file in folder.glob("*.tar") if not words.isdisjoint(LETTERS.findall(file.name.lower()))]
        if files := sorted(inside or beside):
            found[split] = files
    for one, two in combinations(found, 2):
        if both := sorted({*found[one]} & {*found[two]}):
            raise NotPrepared(
                f"index: {both[0]} has the words of two splits in its name, {one} and {two}; rename it, or move the "
                f"files of each split into a folder {one} or {two}"
            )
    if "val" in found and "test" not in found:
        found["test"] = found.pop("val")  # as ImageNet is published
    return found if "train" in found else {}


def index(folder: Path) -> Node:
    """Makes a WebDataset's index, `SPLIT.index.npy` and `prepared.json`, beside its tar files, which stay as they are.

    An image is a member whose suffix says so, its class the number in the member of the same name and the suffix .cls.
    Names of classes are read from `classes.txt` there, a line each; without that file they are the numbers.

    Raises:
        NotPrepared: a sample has no image, two, or no class; a tar file is damaged.
    """
    begun = time.monotonic()
    with owned(folder):
        splits: Node = {}
        tables: dict[str, np.ndarray[Any, Any]] = {}
        found = tars(folder)
        if others := sorted({*folder.glob("*.tar")}.difference(*found.values())):
            log.warning("passed over, as their names have no split's word: %s", listed([file.name for file in others]))
        for split, files in found.items():
            parts, shards = list[np.ndarray[Any, Any]](), list[Node]()
            for number, file in enumerate(files):
                part = entries(file)
                part["shard"] = number
                part["row"] = np.arange(len(part)) + sum(map(len, parts))
                name, size = file.relative_to(folder).as_posix(), file.stat().st_size
                shards.append({"file": name, "images": len(part), "bytes": size, "sha256": manifest.digest(file)})
                parts.append(part)
                log.info("%s: %d images", name, len(part))
            tables[split] = np.concatenate(parts)
            splits[split] = {"images": len(tables[split]), "bytes": sum(s["bytes"] for s in shards), "shards": shards}
        classes = class_names(folder, 1 + max(int(table["label"].max()) for table in tables.values()))
        for split, table in tables.items():
            replace(file := folder / manifest.index_file(split), array_bytes(table))
            counts = np.bincount(table["label"], minlength=len(classes)).tolist()
            splits[split] |= {"index": manifest.digest(file), "classes": dict(zip(classes, counts, strict=True))}
        content = described(
            folder,
            name=folder.resolve().name,
            format="webdataset",
            classes=classes,
            mean=list(IMAGENET_MEAN),
            std=list(IMAGENET_STD),
            broken=0,
            splits=splits,
        )
    return told(content, seconds=time.monotonic() - begun, made=sum(map(len, tables.values())))


def entries(file: Path) -> np.ndarray[Any, Any]:
    """The images of a tar file, in order, as rows of `manifest.ENTRY`. Raises `NotPrepared`."""
    images: dict[str, tuple[int, int, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(file, "r:") as opened:
            for member in opened:
                if not member.isfile():
                    continue
                parent, _, last = member.name.rpartition("/")
                stem, _, suffix = last.partition(".")
                key, suffix = f"{parent}/{stem}", suffix.lower()
                if suffix in SUFFIXES:
                    if key in images:
                        raise NotPrepared(f"index: {file} has two images for the sample {key.lstrip('/')}")
                    data = content(opened, member)
                    images[key] = member.offset_data, member.size, zlib.crc32(data), manifest.kind_of(data)
                elif suffix in LABELS:
                    labels[key] = int(content(opened, member))
    except NotPrepared:
        raise
    except (tarfile.TarError, ValueError, OSError) as error:
        raise NotPrepared(f"index: {file} can't be read ({error})") from error
    if missing := [key for key in images if key not in labels]:
        raise NotPrepared(
            f"index: {file}: {len(missing)} of {len(images)} images have no class beside them (.cls), the first "
            f"{missing[0].lstrip('/')}"
        )
    if not images:
        raise NotPrepared(f"index: {file} has no images; remove it")
    table = np.zeros(len(images), manifest.ENTRY)
    for entry, (key, (offset, size, crc, kind)) in zip(table, images.items(), strict=True):
        if labels[key] < 0:
            raise NotPrepared(f"index: {file}: the class of {key.lstrip('/')} is {labels[key]}; classes begin with 0")
        entry["offset"], entry["size"], entry["crc"], entry["kind"] = offset, size, crc, kind
        entry["label"] = labels[key]
    return table


def content(opened: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    return (opened.extractfile(member) or io.BytesIO()).read()


def class_names(folder: Path, count: int) -> list[str]:
    """`classes.txt`, or numbers. Raises `NotPrepared` where it has too few."""
    file = folder / "classes.txt"
    if not file.is_file():
        return [str(number) for number in range(count)]
    names = file.read_text(encoding="utf-8").splitlines()
    if len(names) < count:
        raise NotPrepared(f"index: {file} names {len(names)} classes, and the labels go up to {count - 1}")
    return names


def verify(folder: Path) -> Node:
    """Reads a packed set and compares every checksum. Raises `NotPrepared` with all that is wrong."""
    begun = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last > 10:
            last = now
            log.info("read %.1f of %.1f GB, %.0f MB a second", done / 1e9, total / 1e9, done / 1e6 / (now - begun))

    storage = Storage(str(folder))
    content: Node = json.loads((folder / manifest.NAME).read_text(encoding="utf-8"))
    manifest.check_names(content, str(folder))
    found = list(manifest.faults(storage.folder, content, whole=True, told=show))
    if found:
        raise NotPrepared(f"verify={folder}: {len(found)} files aren't what was packed:{listed(found)}")
    results = told(content, seconds=time.monotonic() - begun, made=0)
    log.info("every checksum is right")
    return results
