"""Sizes and modification times of files, by which packing sees images that were changed under the same names.

Only packing asks. To a training run a data set is the same on another machine, where its files have other times.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np

from vitlab.data.rows import Rows
from vitlab.data.scan import THREADS
from vitlab.data.source import Split

NAME = ".stamps.json"  # next to `prepared.json`, which is the same for the same images, wherever they are stored


def sizes_and_mtimes(split: Split) -> np.ndarray[Any, Any]:
    """The bytes and the modification time in nanoseconds of each image's file, int64 [n, 2].

    Zeros for images in memory, fetched, or within a file whose content the split's digest covers. A file that isn't
    there has values of its own.
    """
    files = split.files.local_files() if isinstance(split.files, Rows) else split.files
    if files is None:
        return np.zeros((len(split), 2), np.int64)
    with ThreadPoolExecutor(THREADS) as pool:
        parts = [files[start : start + 1024] for start in range(0, len(files), 1024)]
        pairs = chain.from_iterable(pool.map(lambda part: [size_and_mtime(file) for file in part], parts))
        return np.array(list(pairs), np.int64).reshape(-1, 2)


def size_and_mtime(file: str) -> tuple[int, int]:
    if not file:
        return 0, 0
    try:
        state = os.stat(file)  # noqa: PTH116 a million
    except OSError as error:
        return -1, error.errno or 0
    return state.st_size, state.st_mtime_ns
