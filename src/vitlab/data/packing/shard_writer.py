"""A data set as shards, each written on request. A shard is a function of the images and the settings alone."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vitlab.config.schema import Node
from vitlab.data.decode import error_reason, is_out_of_memory, read_error_not_skipped
from vitlab.data.packing.encode import image_bytes
from vitlab.data.packing.manifest import WORK, write_table
from vitlab.data.packing.mtimes import sizes_and_mtimes
from vitlab.data.packing.tar import Item, read_tar, write_tar
from vitlab.data.rows import InvalidImage
from vitlab.data.sampler import cut, shuffled_blocks, stable_seed
from vitlab.data.scan import BadFile
from vitlab.data.source import Source
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


class ShardWriter(Dataset[Node]):
    """All shards of a data set, to be packed into the folder `out`; item `number` writes one and returns its record."""

    def __init__(self, source: Source, settings: Settings, out: Path) -> None:
        self.source, self.settings, self.out = source, settings, out
        self.orders = packing_order(source, settings)
        self.jobs = [  # split, number within it, and the part of its order
            (split, shard, part.start, part.stop)
            for split, order in self.orders.items()
            for shard, part in enumerate(cut(len(order), -(-len(order) // settings.shard_images)))
        ]
        pairs = {name: sizes_and_mtimes(split)[self.orders[name]] for name, split in source.splits.items()}
        parts = [np.ascontiguousarray(pairs[name][start:stop]) for name, _, start, stop in self.jobs]
        self.stamps = [hashlib.blake2b(part.tobytes(), digest_size=16).hexdigest() for part in parts]

    def __len__(self) -> int:
        return len(self.jobs)

    def record_file(self, number: int) -> Path:
        """Where the record of a complete shard is; the rows of its images are next to it."""
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
                fewer = "processes=N with fewer needs less memory; " if is_out_of_memory(error) else ""
                remedy = f"{fewer}the same command resumes, once that is mended"
                raise read_error_not_skipped(image, error, remedy) from error
            else:
                items.append(Item(data, int(split.labels[row]), place))
                rows.append(row)
        record: Node = {"split": name, "images": len(items), "broken": broken, "stamp": self.stamps[number]}
        if items:
            write_tar(temporary := self.out / WORK / f"making-{number}.tar", items)
            table, record["shard"] = read_tar(temporary, f"{name}/{shard:06d}.tar")
            table["row"] = rows
            write_table(self.record_file(number).with_suffix(".npy"), table)
            fsync(temporary)
            (self.out / name).mkdir(exist_ok=True)
            temporary.replace(self.out / record["shard"]["file"])
        atomic_write(self.record_file(number), json.dumps(record).encode())
        return record


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
