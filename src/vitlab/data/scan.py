"""Find bad image files before training: all are reported at once, or skipped and listed.

Skipped files decide the splits, so they are found once, listed in the run's folder, and read from there by the other
ranks, by a resumed run and by evaluation, even if a file was repaired or damaged since.
"""

import csv
import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
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

log = logging.getLogger(__name__)

Scan = Literal["none", "headers", "decode"]
OnError = Literal["raise", "skip"]
SplitName = Literal["train", "val", "test"]
THREADS = 16  # that wait for a disk or a network
SHOWN = 10
DUPLICATES, BAD = "duplicates.csv", "bad_images.csv"
AGAIN = "start again, once that is mended"


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


Row = TypeVar("Row", BadFile, Duplicate)


def drop_bad_files(
    source: Source, *, on_error: OnError, max_skipped: float, scan: Scan, record: Path | None, first: bool = True
) -> tuple[Source, list[Duplicate]]:
    """The source without bad files, and the files with equal content, which a scan that decodes finds.

    Args:
        source: Of image files.
        on_error: `raise`: any bad file is an error. `skip`: bad files, found by decoding all, are left out.
        max_skipped: Share of all files above which `skip` refuses.
        scan: How closely `raise` looks.
        record: Where `skip` lists what it skipped; if there is such a file, it is read instead of scanning again. Next
            to it, `raise` writes longer lists, and both write the files with equal content.
        first: Whether this process scans under `raise`: one per machine is enough.

    Raises:
        ValueError: files are bad; more are bad than may be left out; a class is left with none.
    """
    if on_error == "raise":
        if scan == "headers" and source.train.blocks is not None:
            log.info("images that are streamed aren't looked at before training; data.scan=decode reads them all")
            return source, []
        if scan == "none" or not first:
            return source, []
        faults, copies = find_bad_files(source, scan)
        if record is not None and copies:
            write_rows(record.with_name(DUPLICATES), Duplicate, copies)
        if faults:
            raise ValueError(refusal(faults, source, scan, record))
        return source, copies
    if record is None:
        faults, copies = find_bad_files(source, "decode")
    else:
        record.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(record.with_name(f".{record.name}.lock")):  # of several ranks, one scans
            if not record.is_file():
                faults, copies = find_bad_files(source, "decode")
                if copies:
                    write_rows(record.with_name(DUPLICATES), Duplicate, copies)
                write_rows(record, BadFile, faults)  # last: it says that the scan was finished
            faults, copies = read_rows(record, BadFile), read_rows(record.with_name(DUPLICATES), Duplicate)
    return without_files(source, faults, max_skipped, record), copies


def find_bad_files(source: Source, scan: Scan) -> tuple[list[BadFile], list[Duplicate]]:
    """All bad files, in order, and, if the scan decodes, all files with equal content."""
    splits = {name: split for name, split in source.splits.items() if split.files}
    names = [name for name, split in splits.items() for _ in split.labels]
    labels = [source.classes[label] for split in splits.values() for label in split.labels.tolist()]
    paths = chain.from_iterable(split.files or [] for split in splits.values())
    root = common_folder(source)
    check, what = (header_problem, "headers of") if scan == "headers" else (content_problem, "whole of")
    start = logged = time.monotonic()
    found: list[tuple[str, str]] = []
    # Python's own work is one thread at a time: more threads help those that wait for a disk or decode
    with quiet(), ThreadPoolExecutor(THREADS if scan == "headers" else environment.cores()) as pool:
        while part := list(islice(paths, 1024)):
            found += pool.map(check, part)
            if (now := time.monotonic()) - logged > 10:
                logged = now
                rate = len(found) / (now - start)
                log.info("read the %s %d of %d images, %.0f a second", what, len(found), len(names), rate)
    seconds = time.monotonic() - start
    log.info("read the %s %d images in %.1f s, %.0f a second", what, len(names), seconds, len(names) / seconds)
    faults: list[BadFile] = []
    groups: dict[str, list[Duplicate]] = {}
    paths = chain.from_iterable(split.files or [] for split in splits.values())
    for path, name, label, (reason, digest) in zip(paths, names, labels, found, strict=True):
        if reason:
            faults.append(BadFile(path.removeprefix(root), name, reason))
        if digest:
            groups.setdefault(digest, []).append(Duplicate(digest, path.removeprefix(root), name, label))
    return faults, [copy for group in groups.values() if len(group) > 1 for copy in group]


def header_problem(path: str) -> tuple[str, str]:
    """What is wrong with a file's header, or '', and '' for its content's digest."""
    try:
        check_header(path)
    except Exception as error:  # a decoder meets any bytes
        return image_problem(path, error), ""
    return "", ""


def content_problem(path: str) -> tuple[str, str]:
    """What is wrong with a file when it is decoded, or '', and the digest of a good file's content."""
    try:
        data = read_bytes(path)
    except InvalidImage as error:
        return error_reason(error), ""
    except Exception as error:  # of a disk, a network or a limit
        raise read_error_not_skipped(path, error, AGAIN) from error
    try:
        decode(data)
    except Exception as error:
        return image_problem(path, error), ""
    return "", hashlib.blake2b(data, digest_size=16).hexdigest()


def image_problem(path: str, error: Exception) -> str:
    """What is wrong with an image. Raises `UnreadableImage` if the image is not at fault."""
    if image_is_at_fault(error):
        return error_reason(error)
    raise read_error_not_skipped(path, error, AGAIN) from error


def refusal(faults: list[BadFile], source: Source, scan: Scan, record: Path | None) -> str:
    """The error of `on_error=raise`."""
    total, root = sum(map(len, source.splits.values())), common_folder(source)
    lines = [f"  - {root}{path}: {reason}" for path, _, reason in faults[:SHOWN]]
    if len(faults) > SHOWN:
        where = ""
        if record is not None:
            record.parent.mkdir(parents=True, exist_ok=True)
            write_rows(file := record.with_name(BAD), BadFile, faults)
            where = f", all listed in {file}"
        lines.append(f"  - and {len(faults) - SHOWN} more{where}")
    return "\n".join(
        [
            f"{len(faults)} of {total} images can't be used (data.scan={scan}):",
            *lines,
            "replace or remove them, or leave them out: data.on_error=skip",
        ]
    )


def without_files(source: Source, faults: list[BadFile], max_skipped: float, record: Path | None) -> Source:
    """The source without the files of `faults`. Raises `ValueError` if these are too many, or all of a class."""
    total, root = sum(map(len, source.splits.values())), common_folder(source)
    bad = {fault.path for fault in faults}
    shown = "".join(f"\n  - {root}{path}: {reason}" for path, _, reason in faults[:SHOWN])
    where = f", listed in {record}" if record is not None else ""
    if len(faults) > max_skipped * total:
        raise ValueError(
            f"data.on_error=skip would leave out {len(faults)} of {total} images ({len(faults) / total:.2%}), more "
            f"than data.max_skipped={max_skipped:g} allows; raise that, or replace the files{where}:{shown}"
        )
    if not faults:
        return source

    def rest(name: str, split: Split) -> Split:
        kept = [i for i, path in enumerate(split.files or []) if path.removeprefix(root) not in bad]
        part = split.subset(torch.tensor(kept, dtype=torch.long))
        emptied = set(split.labels.tolist()) - set(part.labels.tolist())
        if emptied:
            raise ValueError(
                f"data.on_error=skip leaves no image of the class {source.classes[min(emptied)]!r} in {name}; replace "
                f"the files, or leave the class out of data.source.classes{shown}"
            )
        return part

    val = rest("val", source.val) if source.val else None
    cleaned = replace(source, train=rest("train", source.train), test=rest("test", source.test), val=val)
    log.warning("left out %d of %d images that can't be used%s:%s", len(faults), total, where, shown)
    return cleaned


def warn_of_duplicates(
    copies: list[Duplicate], splits: Mapping[SplitName, Split], root: str, record: Path | None
) -> None:
    """Warn of files with equal content in several splits; nothing is changed."""
    place = {path.removeprefix(root): name for name, split in splits.items() for path in split.files or []}
    groups: dict[str, list[tuple[str, str]]] = {}
    for copy in copies:
        if copy.path in place:
            groups.setdefault(copy.group, []).append((place[copy.path], copy.path))
    crossing = [group for group in groups.values() if len({name for name, _ in group}) > 1]
    if crossing:
        lines = ["\n  - " + " = ".join(f"{path} ({name})" for name, path in group[:4]) for group in crossing[:SHOWN]]
        where = f"; {record.with_name(DUPLICATES)} lists all copies" if record is not None else ""
        log.warning(
            "%d images are in more than one of train, val and test, so scores on them say less%s:%s",
            len(crossing),
            where,
            "".join(lines),
        )


def common_folder(source: Source) -> str:
    """The folder of all files, with a slash at its end: paths below it stay valid if it is moved."""
    files: list[str] = []
    for split in source.splits.values():
        if isinstance(split.files, Rows):
            files += [split.files[0], split.files[-1]]  # the names of all rows begin in the same way
        elif split.files:
            files += [min(split.files), max(split.files)]
    folder = os.path.commonpath([min(files), max(files)])  # of strings in order: common to these, common to all
    return str(Path(folder, "x"))[:-1] if folder else ""


def listed(lines: Sequence[str]) -> str:
    """The first of many lines beneath a message, and how many more there are."""
    more = f"\n  - and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "".join(f"\n  - {line}" for line in lines[:SHOWN]) + more


def write_rows(file: Path, kind: type[BadFile] | type[Duplicate], rows: list[BadFile] | list[Duplicate]) -> None:
    """Write a CSV file atomically: a reader, or a power cut, finds all of it or none."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as text:
            csv.writer(text).writerows([kind._fields, *rows])
            text.flush()
            os.fsync(text.fileno())
        temporary.replace(file)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def read_rows(file: Path, kind: Callable[..., Row]) -> list[Row]:
    """The rows of a CSV file that `write_rows` wrote; none if there is no such file."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as text:
        return [kind(*row) for row in list(csv.reader(text))[1:]]
