"""What tells that images were changed under the same names since they were packed: sizes and times of their files.

Only packing asks. To a training run a data set is the same on another machine, where its files have other times.
"""

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from vitlab.data.rows import Rows
from vitlab.data.scan import THREADS
from vitlab.data.source import Split

if TYPE_CHECKING:
    from vitlab.data.packing import Shards

log = logging.getLogger(__name__)

NAME = ".stamps.json"  # beside `prepared.json`, which says the same of the same images wherever they lie


def stamps(split: Split) -> np.ndarray[Any, Any]:
    """Of each image of a split, its file's bytes and the nanoseconds when it was last changed: int64 [n, 2].

    Zeros for what is in memory, fetched, or within a file whose content the split's digest knows. What isn't there has
    a stamp of its own.
    """
    files = split.files.local_files() if isinstance(split.files, Rows) else split.files
    if files is None:
        return np.zeros((len(split), 2), np.int64)
    with ThreadPoolExecutor(THREADS) as pool:
        parts = [files[start : start + 1024] for start in range(0, len(files), 1024)]
        found = chain.from_iterable(pool.map(lambda part: [stamp(file) for file in part], parts))
        return np.array(list(found), np.int64).reshape(-1, 2)


def stamp(file: str) -> tuple[int, int]:
    if not file:
        return 0, 0
    try:
        state = os.stat(file)  # noqa: PTH116 a million
    except OSError as error:
        return -1, error.errno or 0
    return state.st_size, state.st_mtime_ns


def digest(found: np.ndarray[Any, Any]) -> str:
    """Of several images' stamps, in order."""
    return hashlib.blake2b(np.ascontiguousarray(found).tobytes(), digest_size=16).hexdigest()


def forget_changed(shards: "Shards") -> None:
    """Removes the records of shards whose files were changed, or replaced as they were broken, and images of folders.

    An image that is another format now would lie beside what it was.
    """
    changed = 0
    for number, stamp in enumerate(shards.stamps):
        if (file := shards.record(number)).is_file():
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["faults"] or record.get("stamp") != stamp:
                changed += record.get("stamp") != stamp
                file.unlink()
    if changed:
        log.warning("%d shards are made again: files of their images have other sizes or times now", changed)
    if shards.settings.to == "folder":
        made = {name: np.zeros(len(order), bool) for name, order in shards.orders.items()}
        for number, (name, _, start, stop) in enumerate(shards.jobs):
            made[name][start:stop] = shards.record(number).is_file()
        for name, kept in made.items():
            for file in (shards.out / name).glob("*/*"):
                if file.stem.isdigit() and int(file.stem) < len(kept) and not kept[int(file.stem)]:
                    file.unlink()
