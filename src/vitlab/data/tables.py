"""Images in the rows of tables: Arrow tables, mapped into memory, and parquet files anywhere, read by row group."""

import bisect
import hashlib
import math
import os
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from vitlab.data.rows import InvalidImage, Rows

if TYPE_CHECKING:
    from torch import Tensor

OPEN_FILES = 64


class ArrowRows(Rows):
    """Rows of a `datasets.Dataset` in local files, with the images or their paths."""

    def __init__(self, place: str, dataset: Any, column: str, chosen: "Tensor") -> None:
        from datasets import Image

        super().__init__(place, chosen)
        self.column = column
        self.dataset = dataset.select_columns([column]).cast_column(column, Image(decode=False))

    def read(self, row: int) -> bytes:
        return image_bytes(self.dataset[row][self.column])

    def content(self) -> bytes:
        """The length of each encoded image, or the name of its file."""
        import pyarrow.compute as pc

        column = self.dataset.data.column(self.column)  # of `bytes` and `path`
        lengths = pc.fill_null(pc.binary_length(pc.struct_field(column, "bytes")), -1)
        digest = hashlib.blake2b(lengths.to_numpy().astype("<i8").tobytes(), digest_size=16)
        if pc.any(pc.equal(lengths, -1)).as_py():
            for path in pc.struct_field(column, "path").to_pylist():
                digest.update("/".join((path or "").split("/")[-2:]).encode() + b"\0")
        return digest.digest()


class Group(NamedTuple):
    """A row group of a parquet file."""

    file: int  # number among the split's files
    number: int  # number within the file
    start: int  # the split's row that is its first
    rows: int
    size: int  # bytes of its images, compressed


class ParquetRows(Rows):
    """Rows of parquet files, paths or URLs, read by row group.

    The processes of a machine have about `buffer` rows in memory.
    """

    def __init__(
        self, place: str, files: tuple[str, ...], column: str, groups: tuple[Group, ...], buffer: int, chosen: "Tensor"
    ) -> None:
        super().__init__(place, chosen)
        self.files, self.column, self.groups, self.buffer = files, column, groups, buffer
        self.starts = [group.start for group in groups]
        self._process: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetRows, (self.place, self.files, self.column, self.groups, self.buffer, self.chosen)

    @property
    def blocks(self) -> "Tensor":
        import torch

        return torch.from_numpy(self._block_numbers())

    def _block_numbers(self) -> Any:
        """The blocks as a NumPy array: in a forked process, torch's threads may wait forever."""
        import numpy as np

        return np.searchsorted(np.array(self.starts), self.chosen.numpy(), side="right") - 1

    def cache_size(self) -> int:
        """Number of row groups that this process keeps: a loading worker keeps those of its turns."""
        import numpy as np
        from torch.utils.data import get_worker_info

        from vitlab.data.sampler import pieces

        sizes, worker = np.bincount(self._block_numbers()), get_worker_info()
        # the median, as in `sampler.shuffled_blocks`
        rows = int(np.quantile(sizes[sizes > 0], 0.5, method="lower"))
        layout = pieces(rows, self.buffer)
        return 1 + layout.blocks_in_use(rows) // math.gcd(layout.turns, worker.num_workers if worker else 1)

    def read(self, row: int) -> bytes:
        if self._process != os.getpid():  # files that were opened before a fork are the parent's
            self._lock, self._open = threading.Lock(), lru_cache(OPEN_FILES)(open_parquet)
            self._images = lru_cache(self.cache_size())(self._read_group)
            self._process = os.getpid()  # last: several threads may be here
        block = bisect.bisect_right(self.starts, row) - 1
        with self._lock:  # threads that need the same row group read it once
            images = self._images(block)
        return image_bytes(images[row - self.groups[block].start].as_py())

    def _read_group(self, block: int) -> Any:
        group = self.groups[block]
        file = self._open(self.files[group.file])
        column = file.read_row_group(group.number, columns=[self.column], use_threads=False)
        if len(column) != group.rows:
            raise OSError(f"{self.files[group.file]} was changed since its row groups were counted")
        return column.column(0).combine_chunks()

    def content(self) -> bytes:
        """The sizes of all row groups."""
        return repr([(group.rows, group.size) for group in self.groups]).encode()


def open_parquet(place: str) -> Any:
    """A `pyarrow.parquet.ParquetFile` at a path or URL."""
    import fsspec
    import pyarrow.parquet as pq

    if "://" not in place:
        return pq.ParquetFile(place)
    system, path = fsspec.core.url_to_fs(place)
    return pq.ParquetFile(system.open(path, cache_type="none"), pre_buffer=True)


def image_bytes(value: dict[str, Any] | None) -> bytes:
    """The bytes of an image as `datasets` stores it, in its row or as a local path. Raises `OSError`."""
    data, path = (value or {}).get("bytes"), (value or {}).get("path")
    if data is not None:
        return bytes(data)
    if path is None:
        raise InvalidImage("the row holds no image")
    if not os.path.isabs(path):  # noqa: PTH117 a million
        raise InvalidImage(f"the row holds no image, but the name {path}")
    from vitlab.data.decode import read_bytes

    return read_bytes(path)
