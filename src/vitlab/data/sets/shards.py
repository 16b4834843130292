"""Images in WebDataset's tar files, packed by `src/prepare.py`.

The index has the position of each image, so images are read one by one, in the sampler's order, and a run resumes at
the exact image. The order of a stream of tar files depends on the number of processes that read it.
"""

import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config.bounds import Fraction, PositiveFloat, PositiveInt, check_bounds
from vitlab.data.rows import InvalidImage, Rows
from vitlab.data.source import Facts, Source, Split, folder_label

if TYPE_CHECKING:
    from torch import Tensor

    from vitlab.storage.remote import Storage

log = logging.getLogger(__name__)

OPEN_FILES = 64  # of one split in one process
BLOCK_SPLIT_SHARDS = 100  # from this many shards on, complete ones are held out for validation


class OpenShard:
    """A file descriptor that is closed with its last reference; threads and forked processes may share it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.descriptor)


class ShardRows(Rows):
    """Images of a split in `shards` (names and sizes); the file `index` is mapped into memory."""

    def __init__(
        self, place: str, storage: "Storage", shards: Sequence[tuple[str, int]], index: str, chosen: "Tensor"
    ) -> None:
        import numpy as np

        super().__init__(place, chosen)
        self.storage, self.shards, self.index_file = storage, shards, index
        self.entries = np.load(index, mmap_mode="r", allow_pickle=False)
        self.split_by_block = len(shards) >= BLOCK_SPLIT_SHARDS  # few shards would be too coarse
        # without a reference to `self`, so that the files are closed with it
        self._open = lru_cache(OPEN_FILES)(lambda shard: OpenShard(storage.open(*shards[shard])))

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardRows, (self.place, self.storage, self.shards, self.index_file, self.chosen)

    @property
    def blocks(self) -> "Tensor":
        import torch

        return torch.from_numpy(self.entries["shard"].astype("int64"))[self.chosen]

    def read(self, row: int) -> bytes:
        entry = self.entries[row]
        shard, size = int(entry["shard"]), int(entry["size"])
        opened = self._open(shard)  # kept: another thread may take its place in the cache, which would close it
        data = os.pread(opened.descriptor, size, int(entry["offset"]))
        if len(data) != size:
            raise InvalidImage(f"{self.shards[shard][0]} is truncated before the end of this image")
        if zlib.crc32(data) != entry["crc"]:
            raise InvalidImage(f"its checksum is wrong: {self.shards[shard][0]} was damaged")
        return data

    def content(self) -> bytes:
        """Length and checksum of every image."""
        return bytes(self.entries["size"].tobytes() + self.entries["crc"].tobytes())


def problems(*, data_dir: str, shuffle_buffer: int | None, **_: Any) -> Iterator[str]:
    """Problems of the settings that names and sizes of files show."""
    from vitlab.data.packing.manifest import NotShardedData, check_files, read_manifest
    from vitlab.storage.remote import Storage, is_remote, url_problem

    if is_remote(data_dir):
        if (problem := url_problem(data_dir)) is not None:
            yield problem
        if shuffle_buffer is None:
            yield f"data.source.shuffle_buffer=null would fetch a shard for each image of {data_dir}; set a number"
        return
    try:
        storage = Storage(data_dir)
        check_files(storage.folder, read_manifest(storage), checksums=False)
    except NotShardedData as error:
        yield str(error)


@Facts(channels=3, in_memory=False, problems=problems, label=folder_label)
@check_bounds
def shards(
    *,
    data_dir: str,
    shuffle_buffer: PositiveInt | None = 10_000,
    test_fraction: Fraction = 0.2,
    cache_dir: str | None = None,
    cache_gb: PositiveFloat = 100.0,
) -> Source:
    """Shards that `src/prepare.py` packed.

    Args:
        data_dir: A folder, or its URL (s3://, gs://, ...); remote shards are fetched when they are read.
        shuffle_buffer: Number of images from which those of a step are drawn, shard after shard; None: all, which
            reads random positions of a local disk.
        test_fraction: Share of the images that becomes the test split, if the set has none.
        cache_dir: Folder of fetched shards; None: in the user's cache.
        cache_gb: Size of that cache in gigabytes.

    Raises:
        NotShardedData: the folder has no packed set, or a damaged one.
    """
    import torch

    from vitlab.data.packing.manifest import check_files, load_index, read_manifest
    from vitlab.data.splitting import hold_out
    from vitlab.storage.remote import Storage

    storage = Storage(data_dir, cache_dir=cache_dir, cache_gb=cache_gb)
    content = read_manifest(storage)
    if not storage.remote:
        check_files(storage.folder, content, checksums=False)
    splits: dict[str, Split] = {}
    for name, split in content["splits"].items():
        index = load_index(storage, content, name)
        files = [(shard["file"], shard["bytes"]) for shard in split["shards"]]
        place, chosen = f"{Path(storage.place).name}/{name}", torch.arange(len(index))
        rows = ShardRows(place, storage, files, str(index.filename), chosen)
        splits[name] = Split(None, torch.from_numpy(index["label"].astype("int64")), rows)
        log.info("%s: %d images in %d shards", rows.place, len(index), len(files))
    train, test, val = splits["train"], splits.get("test"), splits.get("val")
    if test is None:
        train, test = hold_out(train, test_fraction, seed=0, knob="data.source.test_fraction")
    classes, mean, std = (tuple(content[key]) for key in ("classes", "mean", "std"))
    return Source(content["name"], classes, 3, mean, std, None, train, test, val=val, shuffle_buffer=shuffle_buffer)
