"""Write shards: WebDataset's tar files, in which 000000123.jpg is followed by 000000123.cls, its class.

A shard depends on the images and the settings alone. An image keeps its own bytes if possible, else it is downscaled
and encoded again.
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
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from vitlab.config.schema import Node
from vitlab.data.decode import decode, error_reason, image_is_at_fault, is_out_of_memory, quiet, read_bytes, read_error
from vitlab.data.packing.manifest import ENTRY, STARTS, WORK, Table, write_table
from vitlab.data.rows import InvalidImage
from vitlab.data.sampler import cut, shuffled_blocks, stable_seed
from vitlab.data.scan import BadFile
from vitlab.data.source import Source, Split
from vitlab.storage.atomic import atomic_path, atomic_write, file_sha256

BUFFER = 10_000  # number of images from which those of a shard are drawn, for rows read in blocks


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
        items, broken = list[Item](), list[BadFile]()
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
                items.append(Item(data, int(split.labels[row]), place, row))
        record: Node = {"split": name, "images": len(items), "broken": broken}
        if items:
            file = f"{name}/{shard:06d}.tar"
            (self.out / name).mkdir(exist_ok=True)
            with atomic_path(self.out / file, suffix="part") as temporary:
                table = write_tar(temporary, items)
                about: Node = {"file": file, "images": len(items)}
                about |= {"bytes": temporary.stat().st_size, "sha256": file_sha256(temporary)}
                record["shard"] = about
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
    row: int = 0  # of the source's split


def image_suffix(data: bytes) -> str:
    return next(suffix for suffix, start in STARTS.items() if data.startswith(start))


def write_tar(file: Path, items: Sequence[Item]) -> Table:
    """Write images and their classes, and return the shard's index table."""
    entries, kinds = list[tuple[int, ...]](), [*STARTS]
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for item in items:
            suffix, start = image_suffix(item.data), tar.offset + tarfile.BLOCKSIZE  # after the member's header
            size, crc = len(item.data), zlib.crc32(item.data)
            entries.append((0, start, size, crc, item.label, item.row, kinds.index(suffix)))
            for kind, data in ((suffix, item.data), ("cls", str(item.label).encode())):
                member = tarfile.TarInfo(f"{item.number:09d}.{kind}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return np.array(entries, ENTRY)


def image_bytes(split: Split, index: int, *, size: int | None, quality: int | None) -> bytes:
    """The image at `index` of a split, upright, with a shorter side of at most `size` pixels; never enlarged.

    Upright JPEG and PNG files that are small enough keep their bytes, as do all files without a `size`. Others become
    JPEG of a `quality`, or PNG without one, and images in memory PNG. Raises `InvalidImage` if the image is missing or
    can't be decoded, and another error if the machine is at fault.
    """
    if split.files is None:
        return encode(downscale(split.images_at(torch.tensor([index]))[0], size), None)
    data = read_bytes(split.files[index])
    try:
        with quiet():
            image = decode(data)
            if size is None or (min(image.shape[-2:]) <= size and is_upright(data)):
                return data
            return encode(downscale(image, size), quality)
    except Exception as error:  # Pillow raises a dozen kinds
        if image_is_at_fault(error):
            raise InvalidImage(error_reason(error)) from error
        raise


def is_upright(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return image.format in ("JPEG", "PNG") and image.getexif().get(0x0112, 1) == 1  # orientation


def downscale(image: Tensor, size: int | None) -> Tensor:
    """uint8 [C, H, W] with a shorter side of at most `size`."""
    if size is None or (shorter := min(image.shape[-2:])) <= size:
        return image
    sides = [max(size, round(side * (size / shorter))) for side in image.shape[-2:]]
    smaller: Tensor = v2.functional.resize(image, sides, v2.InterpolationMode.BICUBIC, antialias=True)
    return smaller


def encode(image: Tensor, quality: int | None) -> bytes:
    """uint8 [1 or 3, H, W] as JPEG, or as PNG without a `quality`."""
    options = {"format": "PNG"} if quality is None else {"format": "JPEG", "quality": quality}
    v2.functional.to_pil_image(image).save(file := io.BytesIO(), **options)
    return file.getvalue()
