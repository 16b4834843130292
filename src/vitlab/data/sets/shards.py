"""Images that `src/prepare.py` packed, or indexed, in WebDataset's tar files.

The index says where each image is stored, so images are read one by one, in the order of vitlab's own sampler, and
resumed at the exact image. A stream of tar files can't give that: its order depends on how many processes read it.
"""

import logging
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config.bounds import Fraction, PositiveFloat, PositiveInt, check_bounds
from vitlab.data.rows import InvalidImage, Rows
from vitlab.data.source import Facts, Source, Split, folder_label
from vitlab.distributed import environment

if TYPE_CHECKING:
    from torch import Tensor

    from vitlab.storage.remote import Storage

log = logging.getLogger(__name__)

OPEN_FILES = 64  # of one split in one process
BLOCK_SPLIT_SHARDS = 100  # from this many shards on, complete ones are held out for validation


class OpenShard:
    """A file that is closed with its last reference; threads and forked processes may read it at an offset."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.descriptor)


class ShardRows(Rows):
    """Images of a split in `shards` (names and sizes), in the order of their index, a memory-mapped file."""

    def __init__(
        self, place: str, storage: "Storage", shards: Sequence[tuple[str, int]], index: Any, chosen: "Tensor"
    ) -> None:
        super().__init__(place, chosen)
        self.storage, self.shards, self.entries = storage, shards, index
        # no reference to `self`, so that the files are closed with it
        self._open = lru_cache(OPEN_FILES)(lambda shard: OpenShard(storage.open(*shards[shard])))

    def __reduce__(self) -> tuple[Any, ...]:
        return load_rows, (self.place, self.storage, self.shards, str(self.entries.filename), self.chosen)

    @property
    def blocks(self) -> "Tensor":
        import torch

        return torch.from_numpy(self.entries["shard"].astype("int64"))[self.chosen]

    @property
    def split_by_block(self) -> bool:
        """False for few shards: complete ones would be too coarse, and all of them are soon read anyway."""
        return len(self.shards) >= BLOCK_SPLIT_SHARDS

    def read(self, row: int) -> bytes:
        entry = self.entries[row]
        shard, size = int(entry["shard"]), int(entry["size"])
        data = os.pread(self._open(shard).descriptor, size, int(entry["offset"]))
        if len(data) != size:
            raise InvalidImage(f"{self.shards[shard][0]} ends before this image does: it was cut off")
        if zlib.crc32(data) != entry["crc"]:
            raise InvalidImage(f"its checksum is wrong: {self.shards[shard][0]} was damaged")
        return data

    def content(self) -> bytes:
        """Every image's length and checksum."""
        return bytes(self.entries["size"].tobytes() + self.entries["crc"].tobytes())


def load_rows(
    place: str, storage: "Storage", shards: Sequence[tuple[str, int]], index: str, chosen: "Tensor"
) -> ShardRows:
    """Map the index of pickled rows into memory again."""
    import numpy as np

    return ShardRows(place, storage, shards, np.load(index, mmap_mode="r", allow_pickle=False), chosen)


def problems(*, data_dir: str, shuffle_buffer: int | None, verify: bool, **_: Any) -> Iterator[str]:
    """What is wrong with the settings, as far as names and sizes of files say."""
    from vitlab.data.packing.manifest import NotShardedData, check_files, read_manifest
    from vitlab.storage.remote import Storage, is_remote, url_problem

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


def count(*, data_dir: str, test_fraction: float, **_: Any) -> tuple[int, bool] | None:
    """Images of the train split, and whether there is a validation split, as the manifest says.

    None where the manifest is remote or can't be read, and where complete shards are held out: their sizes vary.
    """
    from vitlab.data.packing.manifest import NotShardedData, read_manifest
    from vitlab.storage.remote import Storage, is_remote

    if is_remote(data_dir):
        return None
    try:
        splits = read_manifest(Storage(data_dir))["splits"]
    except NotShardedData:
        return None
    samples, shards = splits["train"]["images"], len(splits["train"]["shards"])
    if shards >= BLOCK_SPLIT_SHARDS and not {"val", "test"} <= splits.keys():
        return None
    return samples if "test" in splits else samples - math.ceil(samples * test_fraction), "val" in splits


@Facts(channels=3, in_memory=False, problems=problems, count=count, label=folder_label)
@check_bounds
def shards(
    *,
    data_dir: str,
    shuffle_buffer: PositiveInt | None = 10_000,
    verify: bool = False,
    test_fraction: Fraction = 0.2,
    cache_dir: str | None = None,
    cache_gb: PositiveFloat = 100.0,
) -> Source:
    """Images that `src/prepare.py` packed into shards, or indexed.

    Args:
        data_dir: The folder, or its URL (s3://, gs://, ...), from which shards are fetched when needed.
        shuffle_buffer: Among about how many images those of a step are drawn, shard after shard; None: among all,
            which reads a local disk at random places.
        verify: Compare every checksum before training.
        test_fraction: Share of the images that becomes the test split, if the set has none.
        cache_dir: Where fetched shards are kept; None: in the user's cache.
        cache_gb: About how many gigabytes of them are kept.

    Raises:
        NotShardedData: the folder holds no packed set, or a damaged one.
    """
    import torch

    from vitlab.data.packing.manifest import check_files, load_index, read_manifest
    from vitlab.data.splitting import hold_out
    from vitlab.storage.remote import Storage

    storage = Storage(data_dir, cache_dir=cache_dir, cache_gb=cache_gb)
    content = read_manifest(storage)
    if not storage.remote:
        checksums = verify and environment.local_rank(os.environ) == 0
        check_files(storage.folder, content, checksums=checksums)
    splits: dict[str, Split] = {}
    for name, split in content["splits"].items():
        index = load_index(storage, content, name)
        files = [(shard["file"], shard["bytes"]) for shard in split["shards"]]
        rows = ShardRows(f"{Path(storage.place).name}/{name}", storage, files, index, torch.arange(len(index)))
        splits[name] = Split(None, torch.from_numpy(index["label"].astype("int64")), rows)
        log.info("%s: %d images in %d shards", rows.place, len(index), len(files))
    if "test" in splits:
        train, test = splits["train"], splits["test"]
    else:
        train, test = hold_out(splits["train"], test_fraction, seed=0, knob="data.source.test_fraction")
    classes, mean, std = (tuple(content[key]) for key in ("classes", "mean", "std"))
    val = splits.get("val")
    return Source(content["name"], classes, 3, mean, std, None, train, test, val=val, shuffle_buffer=shuffle_buffer)
