"""`data=shards`: images that `src/prepare.py` packed, or indexed, in WebDataset's tar files.

The index says where each image is stored, so images are read one by one, in the order of vitlab's own sampler: each
once an epoch over any number of ranks and workers, resumed at the exact image. A stream of tar files can't give that:
its order depends on how many processes read it, and ranks end at different times.
"""

import logging
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.data.packing.manifest import NotShardedData, check_files, load_index, read_manifest
from vitlab.data.rows import InvalidImage, Rows
from vitlab.data.source import Source, Split
from vitlab.data.splitting import hold_out
from vitlab.distributed import environment
from vitlab.storage.remote import Storage, is_remote, url_problem

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

OPEN_FILES = 64  # of one split in one process
MANY = 100  # shards, from which on whole ones are held out to validate on


class OpenShard:
    """An open file that is closed with its last reference.

    Reading at an offset needs no position and no lock, so threads and forked processes may share it.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self.descriptor, size, offset)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.descriptor)


class ShardRows(Rows):
    """Images of a split in shards, of the names and sizes `shards`, in the order of their index, a mapped file."""

    def __init__(
        self, place: str, storage: Storage, shards: Sequence[tuple[str, int]], table: Any, chosen: "Tensor"
    ) -> None:
        super().__init__(place, chosen)
        self.storage, self.shards, self.table = storage, shards, table
        # without `self`, so that the files are closed with it
        self._open = lru_cache(OPEN_FILES)(
            lambda shard: OpenShard(storage.open(shards[shard][0], size=shards[shard][1]))
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return mapped_rows, (self.place, self.storage, self.shards, str(self.table.filename), self.chosen)

    @property
    def blocks(self) -> "Tensor":
        import torch

        return torch.from_numpy(self.table["shard"].astype("int64"))[self.chosen]

    @property
    def split_by_block(self) -> bool:
        """Of few shards, whole ones would be too much or too little, and all of them are soon read anyway."""
        return len(self.shards) >= MANY

    def subset(self, indices: "Tensor") -> "ShardRows":
        return ShardRows(self.place, self.storage, self.shards, self.table, self.chosen[indices])

    def read(self, row: int) -> bytes:
        entry = self.table[row]
        shard, size = int(entry["shard"]), int(entry["size"])
        data = self._open(shard).read(size, int(entry["offset"]))
        if len(data) != size:
            raise InvalidImage(f"{self.shards[shard][0]} ends before this image does: it was cut off")
        if zlib.crc32(data) != entry["crc"]:
            raise InvalidImage(f"its checksum is wrong: {self.shards[shard][0]} was damaged")
        return data

    def content(self) -> bytes:
        """Every image's length and checksum."""
        return bytes(self.table["size"].tobytes() + self.table["crc"].tobytes())


def mapped_rows(
    place: str, storage: Storage, shards: Sequence[tuple[str, int]], file: str, chosen: "Tensor"
) -> ShardRows:
    """The rows that were pickled, with an index that is mapped again."""
    import numpy as np

    return ShardRows(place, storage, shards, np.load(file, mmap_mode="r", allow_pickle=False), chosen)


def problems(
    *,
    data_dir: str,
    shuffle_buffer: int | None = 10_000,
    verify: bool = False,
    test_fraction: float = 0.2,
    cache_dir: str | None = None,
    cache_gb: float = 100.0,
) -> Iterator[str]:
    """What is wrong with the settings of `sets.shards`, as far as a look at names and sizes tells."""
    if shuffle_buffer is not None and shuffle_buffer < 1:
        yield f"data.source.shuffle_buffer={shuffle_buffer} must be at least 1, or null for the whole split"
    if not 0 < test_fraction < 1:
        yield f"data.source.test_fraction={test_fraction:g} must lie between 0 and 1"
    if not cache_gb > 0:
        yield f"data.source.cache_gb={cache_gb:g} must be above 0"
    if is_remote(data_dir):
        if (problem := url_problem(data_dir)) is not None:
            yield problem
        if shuffle_buffer is None:
            yield f"data.source.shuffle_buffer=null would fetch a shard for each image of {data_dir}; set a number"
        if verify:
            yield f"data.source.verify=true reads all of {data_dir}; verify the folder before it is uploaded"
        return
    try:
        storage = Storage(data_dir)
        check_files(storage.folder, read_manifest(storage), checksums=False)
    except NotShardedData as error:
        yield str(error)


def known_samples(data_dir: str, test_fraction: float) -> tuple[int, bool] | None:
    """Images of the train split, and whether there are others to validate on, as the set says of itself.

    None where it is stored elsewhere or can't be read, and where whole shards are held out, which are about as many.
    """
    if is_remote(data_dir):
        return None
    try:
        splits = read_manifest(Storage(data_dir))["splits"]
    except NotShardedData:
        return None
    samples, many = splits["train"]["images"], len(splits["train"]["shards"]) >= MANY
    if many and not {"val", "test"} <= splits.keys():
        return None
    return samples if "test" in splits else samples - math.ceil(samples * test_fraction), "val" in splits


def load(
    *,
    data_dir: str,
    shuffle_buffer: int | None,
    verify: bool,
    test_fraction: float,
    cache_dir: str | None,
    cache_gb: float,
) -> Source:
    """What `sources.shards` describes. Raises `NotShardedData`."""
    import torch

    storage = Storage(data_dir, cache_dir=cache_dir, cache_gb=cache_gb)
    content = read_manifest(storage)
    if not storage.remote:
        checksums = verify and environment.local_rank(os.environ) == 0
        check_files(storage.folder, content, checksums=checksums)
    splits: dict[str, Split] = {}
    for name, split in content["splits"].items():
        table = load_index(storage, content, name)
        labels = torch.from_numpy(table["label"].astype("int64"))
        shards = [(shard["file"], shard["bytes"]) for shard in split["shards"]]
        place = f"{Path(storage.place).name}/{name}"
        splits[name] = Split(None, labels, ShardRows(place, storage, shards, table, torch.arange(len(table))))
        log.info("%s: %d images in %d shards", place, len(table), len(shards))
    if "test" in splits:
        train, test = splits["train"], splits["test"]
    else:
        train, test = hold_out(splits["train"], test_fraction, seed=0, knob="data.source.test_fraction")
    classes, mean, std = (tuple(content[key]) for key in ("classes", "mean", "std"))
    val = splits.get("val")
    return Source(content["name"], classes, 3, mean, std, None, train, test, val=val, shuffle_buffer=shuffle_buffer)
