"""A shard, written and read: WebDataset's tar file, in which 000000123.jpg is followed by 000000123.cls, its class."""

import io
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitlab.config.schema import Node
from vitlab.data.packing.manifest import ENTRY, NotShardedData, Table
from vitlab.storage.atomic import file_sha256

# The first bytes of images, by the suffix of their files.
STARTS = {"jpg": b"\xff\xd8", "png": b"\x89PNG", "webp": b"RIFF", "bmp": b"BM", "gif": b"GIF8", "ppm": b"P", "tif": b""}
SUFFIXES = {*STARTS, "jpeg", "pgm", "tiff"}
LABELS = ("cls", "cls.txt", "label", "label.txt")


class Item(NamedTuple):
    """An image to be packed."""

    data: bytes
    label: int
    number: int  # its place in the packed split


def suffix_of(data: bytes) -> str:
    """The suffix that an encoded image's first bytes ask for."""
    return next(suffix for suffix, start in STARTS.items() if data.startswith(start))


def write_tar(file: Path, items: Sequence[Item]) -> None:
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for item in items:
            for suffix, data in ((suffix_of(item.data), item.data), ("cls", str(item.label).encode())):
                member = tarfile.TarInfo(f"{item.number:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def read_tar(file: Path, name: str) -> tuple[Table, Node]:
    """The images of a shard, in order, as rows of an index, and what the manifest says about the shard.

    An image is a member whose suffix says so, its class the number in the member of the same name and the suffix .cls.
    `name` is what the shard is called in its set. Raises `NotShardedData` for a damaged file, and other samples.
    """
    images, labels = dict[str, tuple[int, int, int, int]](), dict[str, int]()
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if (content := tar.extractfile(member)) is None:
                    continue
                parent, _, last = member.name.rpartition("/")
                stem, _, suffix = last.partition(".")
                key, suffix = f"{parent}/{stem}".lstrip("/"), suffix.lower()
                if suffix in SUFFIXES:
                    if key in images:
                        raise ValueError(f"it has two images for the sample {key}")
                    data = content.read()
                    images[key] = member.offset_data, member.size, zlib.crc32(data), [*STARTS].index(suffix_of(data))
                elif suffix in LABELS:
                    labels[key] = int(content.read())
        if not images:
            raise ValueError("it has no images; remove it")
        if lacking := [key for key in images if labels.get(key, -1) < 0]:
            raise ValueError(f"{len(lacking)} of {len(images)} images have no class (.cls, from 0), first {lacking[0]}")
    except (tarfile.TarError, ValueError, OSError) as error:
        raise NotShardedData(f"{file} can't be indexed: {error}") from error
    rows = [(0, start, size, crc, labels[key], 0, kind) for key, (start, size, crc, kind) in images.items()]
    about: Node = {"file": name, "images": len(rows), "bytes": file.stat().st_size, "sha256": file_sha256(file)}
    return np.array(rows, ENTRY), about
