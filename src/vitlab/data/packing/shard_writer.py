"""Write and read shards: WebDataset's tar files, in which 000000123.jpg is followed by 000000123.cls, its class.

A shard depends on the images and the settings alone.
"""

import io
import json
import re
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vitlab.config.schema import Node
from vitlab.data.decode import error_reason, is_out_of_memory, read_error
from vitlab.data.packing.encode import image_bytes
from vitlab.data.packing.manifest import ENTRY, STARTS, WORK, NotShardedData, Table, write_table
from vitlab.data.rows import InvalidImage
from vitlab.data.sampler import cut, shuffled_blocks, stable_seed
from vitlab.data.scan import BadFile
from vitlab.data.source import Source
from vitlab.storage.atomic import atomic_path, atomic_write, file_sha256

BUFFER = 10_000  # number of images from which those of a shard are drawn, for rows read in blocks
IMAGES, LABELS = (*STARTS, "jpeg", "pgm", "tiff"), ("cls", "cls.txt", "label", "label.txt")
MAX_IMAGE_BYTES, MAX_LABEL_BYTES, MAX_CLASSES = 2**30, 64, 10**6


@dataclass(frozen=True)
class Settings:
    """The settings of packing."""

    size: int | None
    quality: int | None
    shard_images: int
    shuffle: bool
    seed: int


class ShardWriter(Dataset[Node]):
    """The shards of a source, to be packed into the folder `out`; an item writes one and returns its record."""

    def __init__(self, source: Source, settings: Settings, out: Path) -> None:
        self.source, self.settings, self.out = source, settings, out
        self.orders = packing_order(source, settings)
        self.jobs = [  # split, number of the shard, and the range of its images in the order of the split
            (split, shard, part.start, part.stop)
            for split, order in self.orders.items()
            for shard, part in enumerate(cut(len(order), -(-len(order) // settings.shard_images)))
        ]

    def __len__(self) -> int:
        return len(self.jobs)

    def record_file(self, number: int) -> Path:
        """The file with the record of a complete shard; its index table is next to it."""
        split, shard, _, _ = self.jobs[number]
        return self.out / WORK / f"{split}-{shard:06d}.json"

    def __getitem__(self, number: int) -> Node:
        name, shard, start, stop = self.jobs[number]
        split, settings = self.source.splits[name], self.settings
        items, rows, broken = list[Item](), list[int](), list[BadFile]()
        for place, row in enumerate(self.orders[name][start:stop].tolist(), start):
            image = str(split.files[row]) if split.files is not None else f"{name}/{row}"
            try:
                data = image_bytes(split, row, size=settings.size, quality=settings.quality)
            except InvalidImage as error:
                broken.append(BadFile(image, name, error_reason(error)))
            except Exception as error:  # the image may be intact: skipping it would lose it
                memory = "a smaller processes=N needs less memory; " if is_out_of_memory(error) else ""
                raise read_error(image, error, f"{memory}repair that, and the same command resumes") from error
            else:
                items.append(Item(data, int(split.labels[row]), place))
                rows.append(row)
        record: Node = {"split": name, "images": len(items), "broken": broken}
        if items:
            file = f"{name}/{shard:06d}.tar"
            (self.out / name).mkdir(exist_ok=True)
            with atomic_path(self.out / file, suffix="part") as temporary:
                write_tar(temporary, items)
                table, record["shard"] = read_tar(temporary, file)
                table["row"] = rows
                write_table(self.record_file(number).with_suffix(".npy"), table)
        atomic_write(self.record_file(number), json.dumps(record))
        return record


def packing_order(source: Source, settings: Settings) -> dict[str, Tensor]:
    """The packing order of each split, int64 [n]: train is shuffled by the seed."""
    orders = {name: torch.arange(len(split)) for name, split in source.splits.items()}
    if settings.shuffle:
        generator = torch.Generator().manual_seed(stable_seed(settings.seed))
        samples, blocks = len(source.train), source.train.blocks
        if blocks is None:
            orders["train"] = torch.randperm(samples, generator=generator)
        else:
            sizes = [len(part) for part in cut(samples, -(-samples // settings.shard_images))]
            orders["train"] = shuffled_blocks(blocks, sizes, BUFFER, generator)
    return orders


class Item(NamedTuple):
    data: bytes
    label: int
    number: int  # position in the packed split


def image_suffix(data: bytes) -> str:
    return next(suffix for suffix, start in STARTS.items() if data.startswith(start))


def write_tar(file: Path, items: Sequence[Item]) -> None:
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for item in items:
            for suffix, data in ((image_suffix(item.data), item.data), ("cls", str(item.label).encode())):
                member = tarfile.TarInfo(f"{item.number:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def read_tar(file: Path, name: str) -> tuple[Table, Node]:
    """The index table of a shard, and its entry in the manifest; `name` is its file name in the set.

    The class of an image is the number in the member of the same name with the suffix .cls. Raises `NotShardedData` for
    a damaged file and for samples without a class or an image.
    """
    images, labels = dict[str, tuple[int, int, int, int]](), dict[str, int]()
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                parent, _, last = member.name.rpartition("/")
                stem, _, suffix = last.partition(".")
                key, suffix = f"{parent}/{stem}".lstrip("/"), suffix.lower()
                if member.isdir() or suffix not in (*IMAGES, *LABELS):
                    continue
                data = member_bytes(tar, member, MAX_IMAGE_BYTES if suffix in IMAGES else MAX_LABEL_BYTES)
                if key in (images if suffix in IMAGES else labels):
                    raise ValueError(f"it has two {'images' if suffix in IMAGES else 'classes'} for the sample {key}")
                if suffix in IMAGES:
                    kind = [*STARTS].index(image_suffix(data))
                    images[key] = member.offset_data, member.size, zlib.crc32(data), kind
                elif re.fullmatch(rb"\s*-?[0-9]+\s*", data) is None or int(data) >= MAX_CLASSES:
                    raise ValueError(
                        f"the class in {member.name} is {data!r}; expected a number from 0 to {MAX_CLASSES - 1}"
                    )
                else:
                    labels[key] = int(data)
            check_end(file, tar.offset)
        if not images:
            raise ValueError("it has no images; remove it")
        if lacking := [key for key in images if labels.get(key, -1) < 0]:
            raise ValueError(f"{len(lacking)} of {len(images)} images have no class (.cls, from 0), first {lacking[0]}")
        if lacking := [key for key in labels if key not in images]:
            formats = ", ".join(IMAGES)
            raise ValueError(f"{len(lacking)} samples have a class and no image ({formats}), first {lacking[0]}")
    except (tarfile.TarError, ValueError, OSError) as error:
        raise NotShardedData(f"{file} can't be indexed: {error}") from error
    rows = [(0, start, size, crc, labels[key], 0, kind) for key, (start, size, crc, kind) in images.items()]
    shard: Node = {"file": name, "images": len(rows), "bytes": file.stat().st_size, "sha256": file_sha256(file)}
    return np.array(rows, ENTRY), shard


def member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    """The content of a regular member, which the index can point to. Raises `ValueError` for any other one."""
    if not member.isreg() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "sparse" if member.issparse() else "no regular file"
        remedy = "pack it again with tar --dereference --hard-dereference, without --sparse"
        raise ValueError(f"its member {member.name} is {kind}; {remedy}")
    if member.size > most:
        raise ValueError(f"its member {member.name} has {member.size:,} bytes; at most {most:,} are read")
    content = tar.extractfile(member)
    return b"" if content is None else content.read()


def check_end(file: Path, end: int) -> None:
    """Raise `ValueError` unless zeros follow from byte `end`, where no more members were found, to the file's end.

    `tarfile` takes a damaged or incomplete header for the end.
    """
    remedy = "make it, or copy it, again"
    with file.open("rb") as content:
        content.seek(end)
        if len(part := content.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise ValueError(f"it is cut off at byte {end + len(part):,}: the tar file's end mark is missing; {remedy}")
        if part.count(0) != len(part):
            raise ValueError(f"its header at byte {end:,} is damaged; {remedy}")
        while part := content.read(2**20):
            if part.count(0) != len(part):
                raise ValueError(
                    f"more follows its end mark at byte {end:,}: it is damaged, or several tar files are joined; "
                    f"{remedy}, as one file each"
                )
