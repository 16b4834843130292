"""Find bad image files before training: all are reported at once, or skipped and listed.

Skipped files decide the splits. So one process scans, once, and lists them in the run's folder; other ranks, a resumed
run and evaluation read that list, even if a file was repaired or damaged since.
"""

import csv
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from filelock import FileLock

from vitlab.config.printable import one_line, table_cell
from vitlab.data.decode import check_header, decode, error_reason, image_is_at_fault, quiet, read_bytes, read_error
from vitlab.data.file_list import FileList, cache_folder, folder_cache_lock
from vitlab.data.rows import InvalidImage, Rows
from vitlab.data.source import Source, Split
from vitlab.distributed import environment
from vitlab.storage.atomic import write_csv

log = logging.getLogger(__name__)

Scan = Literal["none", "headers", "decode"]
OnError = Literal["raise", "skip"]
SplitName = Literal["train", "val", "test"]
THREADS = 16  # that wait for a disk or a network: others take turns in Python, at three times the cost
WAITING = 0.3  # seconds of the processor in one of the clock, below which a thread waits
MAX_LINES = 10  # of a message
BAD = "bad_images.csv"


class BadFile(NamedTuple):
    """A file that can't be used: its path below the common folder of all images, its split, and why."""

    path: str
    split: str
    reason: str


def drop_bad_files(source: Source, *, on_error: OnError, max_skipped: float, scan: Scan, record: Path | None) -> Source:
    """The source without bad files.

    `skip` lists the skipped files in `record`; an existing list is read instead of a new scan. Under `raise`, one
    process of a machine scans, and none as long as no folder has changed since. The others wait for it here, without a
    limit: a process group's would end a long scan.

    Raises:
        ValueError: files are bad; more are bad than may be skipped; a class has none left.
    """
    if on_error == "raise":
        if scan == "headers" and source.train.blocks is not None:
            log.info("images in shards are not checked before training; data.scan=decode reads all of them")
        elif scan != "none":
            done = cache_folder() / f"{scan_id(source, scan)}.scanned"
            with folder_cache_lock(done, common_folder(source)):
                if not done.exists():
                    raise_bad_files(source, scan, record)
                    with suppress(OSError):  # a full disk
                        done.touch()
        return source
    if record is None:
        bad = find_bad_files(source, "decode")
    else:
        record.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(record.with_name(f".{record.name}.lock")):  # of several ranks, one scans
            if not record.is_file():
                write_csv(record, [BadFile._fields, *find_bad_files(source, "decode")])
            bad = read_bad_files(record)
    return without_files(source, bad, max_skipped, record)


def raise_bad_files(source: Source, scan: Scan, record: Path | None) -> None:
    """Raise `ValueError` if the scan finds bad files; write a long list of them next to `record`."""
    if not (bad := find_bad_files(source, scan)):
        return
    total, lines = sum(map(len, source.splits.values())), bad_lines(bad, common_folder(source))
    if len(bad) > MAX_LINES and record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_csv(file := record.with_name(BAD), [BadFile._fields, *bad])
        lines += f", all listed in {file}"
    remedy = "replace or remove them, or skip them with data.on_error=skip"
    raise ValueError(f"{len(bad)} of {total} images can't be used (data.scan={scan}):{lines}\n{remedy}")


def scan_id(source: Source, scan: Scan) -> str:
    """The name of a scan: of these images until a folder changes, else of this start of a job, for all of its ranks."""
    states = [split.files.state if isinstance(split.files, FileList) else "" for split in source.splits.values()]
    ranks = [os.environ.get(name) for name in ("MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")]
    process = os.getppid() if ranks[0] else time.time_ns()
    subject = [scan, states] if all(states) else [scan, common_folder(source), ranks, process]
    return hashlib.blake2b(repr(subject).encode(), digest_size=12).hexdigest()


def find_bad_files(source: Source, scan: Scan) -> list[BadFile]:
    images = ((path, name) for name, split in source.splits.items() for path in split.files or [])
    root, total = common_folder(source), sum(len(split) for split in source.splits.values() if split.files)
    check, content = partial(check_file, decode_all=scan != "headers"), "headers" if scan == "headers" else "all bytes"
    bad, finished, start = list[BadFile](), 0, time.monotonic()
    logged, (threads, size) = start, (1, 64) if scan == "headers" else (environment.cores(), 1)
    with quiet(), ThreadPoolExecutor(max(threads, THREADS)) as pool:
        while part := list(islice(images, 64 * threads)):
            busy, begin = time.process_time(), time.monotonic()
            chunks = [[path for path, _ in part[at : at + size]] for at in range(0, len(part), size)]
            reasons = chain.from_iterable(pool.map(lambda paths: [*map(check, paths)], chunks))
            for (path, name), reason in zip(part, reasons, strict=True):
                if reason:
                    bad.append(BadFile(path.removeprefix(root), name, reason))
            finished += len(part)
            if scan == "headers" and time.process_time() - busy < WAITING * (time.monotonic() - begin):
                threads = THREADS
            if (now := time.monotonic()) - logged > 10:
                logged, rate = now, finished / (now - start)
                left = f"about {(total - finished) / rate / 60:.1f} min left"
                log.info("read %s of %d of %d images, %.0f a second, %s", content, finished, total, rate, left)
    seconds = time.monotonic() - start
    log.info("read %s of %d images in %.1f s, %.0f a second", content, total, seconds, total / seconds)
    return bad


def check_file(path: str, *, decode_all: bool) -> str:
    """What is wrong with a file, or ''. Raises `UnreadableImage` if the image is not at fault."""
    data = None
    try:
        if decode_all:
            data = read_bytes(path)
            decode(data)
        else:
            check_header(path)
    except Exception as error:  # decoders, disks and networks raise many kinds
        is_reading = decode_all and data is None
        if isinstance(error, InvalidImage) or (not is_reading and image_is_at_fault(error)):
            return error_reason(error)
        raise read_error(path, error, "repair that and start again") from error
    return ""


def without_files(source: Source, bad: list[BadFile], max_skipped: float, record: Path | None) -> Source:
    """The source without bad files. Raises `ValueError` if these are too many, or all of a class."""
    total, root = sum(map(len, source.splits.values())), common_folder(source)
    paths, lines = {table_cell(file.path) for file in bad}, bad_lines(bad, root)
    where = f", listed in {record}" if record is not None else ""
    if len(bad) > max_skipped * total:
        raise ValueError(
            f"data.on_error=skip would skip {len(bad)} of {total} images ({len(bad) / total:.2%}), more than "
            f"data.max_skipped={max_skipped:g} allows; raise that, or replace the files{where}:{lines}"
        )
    if not bad:
        return source
    parts: dict[str, Split] = {}
    for name, split in source.splits.items():
        kept = [i for i, path in enumerate(split.files or []) if table_cell(path.removeprefix(root)) not in paths]
        parts[name] = split.subset(torch.tensor(kept, dtype=torch.long))
        if emptied := set(split.labels.tolist()) - set(parts[name].labels.tolist()):
            empty = f"no image of the class {source.classes[min(emptied)]!r} in {name}"
            remedy = "replace the files, or leave the class out of data.source.classes"
            raise ValueError(f"data.on_error=skip leaves {empty}; {remedy}{lines}")
    log.warning("skipped %d of %d images that can't be used%s:%s", len(bad), total, where, lines)
    return replace(source, train=parts["train"], val=parts.get("val"), test=parts["test"])


def common_folder(source: Source) -> str:
    """The folder of all files, with a slash at its end: paths below it stay valid if it is moved."""
    folders: list[str] = []
    for split in source.splits.values():
        if isinstance(split.files, Rows):  # the names of all rows have one prefix
            folders += [split.files[at].rpartition("/")[0] for at in (0, -1)]
        elif split.files:
            folders.append(split.files.common_folder())
    folder = os.path.commonpath(folders)
    return str(Path(folder, "x"))[:-1] if folder else ""


def bad_lines(bad: list[BadFile], root: str) -> str:
    return bullets([f"{root}{path}: {reason}" for path, _, reason in bad])


def bullets(lines: Sequence[str]) -> str:
    """The first lines of a list under a message, and how many more there are."""
    more = f"\n  - and {len(lines) - MAX_LINES} more" if len(lines) > MAX_LINES else ""
    return "".join(f"\n  - {one_line(line)}" for line in lines[:MAX_LINES]) + more


def read_bad_files(file: Path) -> list[BadFile]:
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as text:
        return [BadFile(*row) for row in list(csv.reader(text))[1:]]
