"""A data set as shards, each written on request: WebDataset's tar files, with what the index says about their images.

    SPLIT/NNNNNN.tar    000000123.jpg, then 000000123.cls: webdataset.WebDataset("SPLIT/{000000..000041}.tar")

A shard is a function of the images and the settings alone. It gets a record in `.prepare/` once it is complete.
"""

import io
import json
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
from vitlab.data.decode import error_reason, is_out_of_memory, read_error_not_skipped
from vitlab.data.packing import mtimes
from vitlab.data.packing.encode import image_bytes
from vitlab.data.packing.manifest import ENTRY, KINDS, WORK, file_sha256, kind_of, write_array
from vitlab.data.rows import InvalidImage
from vitlab.data.sampler import cut, shuffled_blocks, stable_seed
from vitlab.data.scan import BadFile
from vitlab.data.source import Source, Split
from vitlab.storage.atomic import atomic_write, fsync

BUFFER = 10_000  # of what is read in blocks: among how many images those of a shard are drawn


@dataclass(frozen=True)
class Settings:
    """How a data set is packed; `checks.problems` has the bounds."""

    size: int | None
    quality: int | None
    shard_images: int
    shuffle: bool
    seed: int


class Item(NamedTuple):
    """An image to be packed."""

    data: bytes
    label: int
    number: int  # its place in the packed split


class ShardWriter(Dataset[Node]):
    """All shards of a data set; item `number` writes one and returns its record.

    Args:
        source: What is packed.
        settings: How.
        out: Where to.
    """

    def __init__(self, source: Source, settings: Settings, out: Path) -> None:
        self.source, self.settings, self.out = source, settings, out
        self.orders = packing_order(source, settings)
        stamps = {name: mtimes.sizes_and_mtimes(split) for name, split in source.splits.items()}
        self.packed_from = {name: mtimes.digest(pairs) for name, pairs in stamps.items()}
        self.jobs = [  # split, number within it, and the part of its order
            (split, shard, part.start, part.stop)
            for split, order in self.orders.items()
            for shard, part in enumerate(cut(len(order), -(-len(order) // settings.shard_images)))
        ]
        self.stamps = [mtimes.digest(stamps[name][self.orders[name][start:stop]]) for name, _, start, stop in self.jobs]

    def __len__(self) -> int:
        return len(self.jobs)

    def record_file(self, number: int) -> Path:
        """Where the record of a complete shard is."""
        split, shard, _, _ = self.jobs[number]
        return self.out / WORK / f"{split}-{shard:06d}.json"

    def __getitem__(self, number: int) -> Node:
        name, shard, start, stop = self.jobs[number]
        split, settings = self.source.splits[name], self.settings
        items, rows, broken = list[Item](), list[int](), list[BadFile]()
        for place, row in enumerate(self.orders[name][start:stop].tolist(), start):
            try:
                data = image_bytes(split, row, size=settings.size, quality=settings.quality)
            except InvalidImage as error:
                broken.append(BadFile(image_name(split, row, name), name, error_reason(error)))
                continue
            except Exception as error:  # the image may be intact: skipping it would lose it
                fewer = "processes=N with fewer needs less memory; " if is_out_of_memory(error) else ""
                remedy = f"{fewer}the same command resumes, once that is mended"
                raise read_error_not_skipped(image_name(split, row, name), error, remedy) from error
            items.append(Item(data, int(split.labels[row]), place))
            rows.append(row)
        record: Node = {"split": name, "shard": shard, "broken": broken, "images": len(items)}
        record["stamp"] = self.stamps[number]
        if items:
            temporary = self.out / WORK / f"making-{number}.tar"
            offsets = write_tar(temporary, items)
            record |= {"file": f"{name}/{shard:06d}.tar", "bytes": temporary.stat().st_size}
            record["sha256"] = file_sha256(temporary)
            fsync(temporary)
            (self.out / name).mkdir(exist_ok=True)
            temporary.replace(self.out / record["file"])
            table = np.zeros(len(items), ENTRY)
            for entry, item, row, offset in zip(table, items, rows, offsets, strict=True):
                entry["offset"], entry["size"], entry["crc"] = offset, len(item.data), zlib.crc32(item.data)
                entry["label"], entry["row"], entry["kind"] = item.label, row, kind_of(item.data)
            write_array(self.record_file(number).with_suffix(".npy"), table)
        atomic_write(self.record_file(number), json.dumps(record).encode())
        return record


def write_tar(file: Path, items: Sequence[Item]) -> list[int]:
    """Write a shard, and return where in it the bytes of each image begin."""
    offsets = []
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for item in items:
            offsets.append(tar.offset + tarfile.BLOCKSIZE)  # after the header
            for suffix, data in ((KINDS[kind_of(item.data)], item.data), ("cls", str(item.label).encode())):
                member = tarfile.TarInfo(f"{item.number:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return offsets


def image_name(split: Split, row: int, name: str) -> str:
    """What an image is called in lists of broken ones."""
    return str(split.files[row]) if split.files is not None else f"{name}/{row}"


def packing_order(source: Source, settings: Settings) -> dict[str, Tensor]:
    """For each split, the order in which its images are packed, int64 [n]: train shuffled by the seed, the others not.

    What is read in blocks is shuffled so that few of them are in use at a time.
    """
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
