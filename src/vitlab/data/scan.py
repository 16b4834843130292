"""Find bad image files before training: all are reported at once, or skipped and listed.

Skipped files decide the splits, so they are searched for once, listed in the run's folder, and read from there by the
other ranks, by a resumed run and by evaluation, even if a file was repaired or damaged since.
"""

import csv
import hashlib
import io
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch
from filelock import FileLock

from vitlab.data.decode import (
    check_header,
    decode,
    error_reason,
    image_is_at_fault,
    quiet,
    read_bytes,
    read_error_not_skipped,
)
from vitlab.data.rows import InvalidImage, Rows
from vitlab.data.source import Source, Split
from vitlab.distributed import environment
from vitlab.storage.atomic import atomic_write

log = logging.getLogger(__name__)

Scan = Literal["none", "headers", "decode"]
OnError = Literal["raise", "skip"]
SplitName = Literal["train", "val", "test"]
THREADS = 16  # that wait for a disk or a network
MAX_LINES = 10  # of a message
DUPLICATES, BAD = "duplicates.csv", "bad_images.csv"


class BadFile(NamedTuple):
    """A file that can't be used: its path below the common folder of all images, its split, and why."""

    path: str
    split: str
    reason: str


class Duplicate(NamedTuple):
    """A file with the same bytes as another one: both have the same `group`."""

    group: str
    path: str
    split: str
    label: str


Entry = TypeVar("Entry", BadFile, Duplicate)


def drop_bad_files(
    source: Source, *, on_error: OnError, max_skipped: float, scan: Scan, record: Path | None, first: bool = True
) -> tuple[Source, list[Duplicate]]:
    """The source without bad files, and the files with equal content, which a scan that decodes finds.

    `skip` lists in `record` what it skipped; if there is such a file, it is read instead of scanning again. Next to it,
    `raise` writes longer lists, and both write the files with equal content. Under `raise` only the `first` process of
    a machine scans.

    Raises:
        ValueError: files are bad; more are bad than may be left out; a class has none left.
    """
    if on_error == "raise":
        if scan == "headers" and source.train.blocks is not None:
            log.info("images that are streamed aren't checked before training; data.scan=decode reads them all")
            return source, []
        if scan == "none" or not first:
            return source, []
        bad, duplicates = find_bad_files(source, scan)
        if record is not None:
            write_duplicates(record, duplicates)
        if bad:
            total, where = sum(map(len, source.splits.values())), ""
            if len(bad) > MAX_LINES and record is not None:
                record.parent.mkdir(parents=True, exist_ok=True)
                write_rows(file := record.with_name(BAD), BadFile, bad)
                where = f", all listed in {file}"
            remedy = "replace or remove them, or leave them out: data.on_error=skip"
            lines = bullets(bad_lines(bad, source))
            raise ValueError(f"{len(bad)} of {total} images can't be used (data.scan={scan}):{lines}{where}\n{remedy}")
        return source, duplicates
    if record is None:
        bad, duplicates = find_bad_files(source, "decode")
    else:
        record.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(record.with_name(f".{record.name}.lock")):  # of several ranks, one scans
            if not record.is_file():
                bad, duplicates = find_bad_files(source, "decode")
                write_duplicates(record, duplicates)
                write_rows(record, BadFile, bad)  # last: it marks the scan as finished
            bad, duplicates = read_rows(record, BadFile), read_rows(record.with_name(DUPLICATES), Duplicate)
    return without_files(source, bad, max_skipped, record), duplicates


def find_bad_files(source: Source, scan: Scan) -> tuple[list[BadFile], list[Duplicate]]:
    """All bad files, in order, and, if the scan decodes, all files with equal content."""
    splits = {name: split for name, split in source.splits.items() if split.files}
    names = [name for name, split in splits.items() for _ in split.labels]
    labels = [source.classes[label] for split in splits.values() for label in split.labels.tolist()]
    paths = chain.from_iterable(split.files or [] for split in splits.values())
    root = common_folder(source)
    check, what = partial(check_file, decode_all=scan != "headers"), "headers" if scan == "headers" else "all bytes"
    start = logged = time.monotonic()
    results: list[tuple[str, str]] = []
    # Python's own work is one thread at a time: more threads help those that wait for a disk or decode
    with quiet(), ThreadPoolExecutor(THREADS if scan == "headers" else environment.cores()) as pool:
        while part := list(islice(paths, 1024)):
            results += pool.map(check, part)
            if (now := time.monotonic()) - logged > 10:
                logged = now
                rate = len(results) / (now - start)
                log.info("read %s of %d of %d images, %.0f a second", what, len(results), len(names), rate)
    seconds = time.monotonic() - start
    log.info("read %s of %d images in %.1f s, %.0f a second", what, len(names), seconds, len(names) / seconds)
    bad: list[BadFile] = []
    groups: dict[str, list[Duplicate]] = {}
    paths = chain.from_iterable(split.files or [] for split in splits.values())
    for path, name, label, (reason, digest) in zip(paths, names, labels, results, strict=True):
        if reason:
            bad.append(BadFile(path.removeprefix(root), name, reason))
        if digest:
            groups.setdefault(digest, []).append(Duplicate(digest, path.removeprefix(root), name, label))
    return bad, [duplicate for group in groups.values() if len(group) > 1 for duplicate in group]


def check_file(path: str, *, decode_all: bool) -> tuple[str, str]:
    """What is wrong with a file, or '', and the digest of its content if all of it was decoded.

    Raises `UnreadableImage` if the image is not at fault.
    """
    data = None
    try:
        if not decode_all:
            check_header(path)
            return "", ""
        data = read_bytes(path)
        decode(data)
    except Exception as error:  # a decoder meets any bytes; a disk, a network or a limit fails in as many ways
        reading = decode_all and data is None
        if isinstance(error, InvalidImage) or (not reading and image_is_at_fault(error)):
            return error_reason(error), ""
        raise read_error_not_skipped(path, error, "repair that and start again") from error
    return "", hashlib.blake2b(data, digest_size=16).hexdigest()


def without_files(source: Source, bad: list[BadFile], max_skipped: float, record: Path | None) -> Source:
    """The source without bad files. Raises `ValueError` if these are too many, or all of a class."""
    total, root = sum(map(len, source.splits.values())), common_folder(source)
    paths, lines = {file.path for file in bad}, bullets(bad_lines(bad, source))
    where = f", listed in {record}" if record is not None else ""
    if len(bad) > max_skipped * total:
        raise ValueError(
            f"data.on_error=skip would leave out {len(bad)} of {total} images ({len(bad) / total:.2%}), more than "
            f"data.max_skipped={max_skipped:g} allows; raise that, or replace the files{where}:{lines}"
        )
    if not bad:
        return source
    parts: dict[str, Split] = {}
    for name, split in source.splits.items():
        kept = [i for i, path in enumerate(split.files or []) if path.removeprefix(root) not in paths]
        parts[name] = split.subset(torch.tensor(kept, dtype=torch.long))
        if emptied := set(split.labels.tolist()) - set(parts[name].labels.tolist()):
            raise ValueError(
                f"data.on_error=skip leaves no image of the class {source.classes[min(emptied)]!r} in {name}; replace "
                f"the files, or leave the class out of data.source.classes{lines}"
            )
    log.warning("left out %d of %d images that can't be used%s:%s", len(bad), total, where, lines)
    return replace(source, train=parts["train"], val=parts.get("val"), test=parts["test"])


def warn_of_duplicates(
    duplicates: list[Duplicate], splits: Mapping[SplitName, Split], root: str, record: Path | None
) -> None:
    """Warn of files with equal content in several splits; nothing is changed."""
    split_of = {path.removeprefix(root): name for name, split in splits.items() for path in split.files or []}
    groups: dict[str, list[str]] = {}
    for duplicate in duplicates:
        if duplicate.path in split_of:
            groups.setdefault(duplicate.group, []).append(duplicate.path)
    crossing = [group for group in groups.values() if len({split_of[path] for path in group}) > 1]
    if crossing:
        lines = [" = ".join(f"{path} ({split_of[path]})" for path in group[:4]) for group in crossing]
        where = f"; {record.with_name(DUPLICATES)} lists all copies" if record is not None else ""
        message = "%d images are in more than one of train, val and test, so scores on them mean less%s:%s"
        log.warning(message, len(crossing), where, bullets(lines))


def common_folder(source: Source) -> str:
    """The folder of all files, with a slash at its end: paths below it stay valid if it is moved."""
    files: list[str] = []
    for split in source.splits.values():
        if isinstance(split.files, Rows):
            files += [split.files[0], split.files[-1]]  # the names of all rows have one prefix
        elif split.files:
            files += [min(split.files), max(split.files)]
    folder = os.path.commonpath([min(files), max(files)])  # of strings in order: common to these, common to all
    return str(Path(folder, "x"))[:-1] if folder else ""


def bad_lines(bad: list[BadFile], source: Source) -> list[str]:
    root = common_folder(source)
    return [f"{root}{path}: {reason}" for path, _, reason in bad]


def bullets(lines: Sequence[str]) -> str:
    """The first of many lines beneath a message, and how many more there are."""
    more = f"\n  - and {len(lines) - MAX_LINES} more" if len(lines) > MAX_LINES else ""
    return "".join(f"\n  - {line}" for line in lines[:MAX_LINES]) + more


def write_duplicates(record: Path, duplicates: list[Duplicate]) -> None:
    if duplicates:
        write_rows(record.with_name(DUPLICATES), Duplicate, duplicates)


def write_rows(file: Path, kind: type[BadFile] | type[Duplicate], rows: list[BadFile] | list[Duplicate]) -> None:
    """Write a CSV file atomically."""
    csv.writer(text := io.StringIO(newline="")).writerows([kind._fields, *rows])
    atomic_write(file, text.getvalue().encode("utf-8", "surrogateescape"))


def read_rows(file: Path, kind: Callable[..., Entry]) -> list[Entry]:
    """The rows of a CSV file that `write_rows` wrote; none if there is no such file."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as text:
        return [kind(*row) for row in list(csv.reader(text))[1:]]
