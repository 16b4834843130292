"""Which files of an image folder are bad, known before training: refused all at once, or left out and listed.

What is left out decides the splits, so it is found once, kept in the run's folder, and read from there by the other
ranks, by a resumed run and by evaluation, even where a file has been mended or broken since.
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

from vitlab import launch
from vitlab.data.decode import check_header, decode, explained, image_is_at_fault, quiet, read_bytes, spared
from vitlab.data.rows import NoImage, Rows
from vitlab.data.source import Source, Split

log = logging.getLogger(__name__)

Scan = Literal["none", "headers", "decode"]
OnError = Literal["raise", "skip"]
SplitName = Literal["train", "val", "test"]
THREADS = 16  # also for what waits for a network
SHOWN = 10
DUPLICATES, BAD = "duplicates.csv", "bad_images.csv"
AGAIN = "start again, once that is mended"


class Fault(NamedTuple):
    """A file that can't be used: its path below the common folder of all images, its split, and why."""

    path: str
    split: str
    reason: str


class Copy(NamedTuple):
    """A file whose very bytes another file has too: both have the same `group`."""

    group: str
    path: str
    split: str
    label: str


Row = TypeVar("Row", Fault, Copy)


def without_bad_files(
    source: Source, *, on_error: OnError, max_skipped: float, scan: Scan, record: Path | None, first: bool = True
) -> tuple[Source, list[Copy]]:
    """The source as it can be trained on, and files with equal content, which a scan that decodes finds.

    Args:
        source: Of an image folder.
        on_error: `raise`: any bad file is an error. `skip`: bad files, found by decoding all, are left out.
        max_skipped: Share of all files above which `skip` refuses.
        scan: How closely `raise` looks.
        record: Where `skip` lists what it left out; where that file is, it is believed instead of scanning again.
            `raise` puts longer lists beside it, and both the files with equal content.
        first: Whether this process scans under `raise`: one on a machine is enough.

    Raises:
        ValueError: files are bad; more are bad than may be left out; a class is left with none.
    """
    if on_error == "raise":
        if scan == "headers" and source.train.blocks is not None:
            log.info("images that are streamed aren't looked at before training; data.scan=decode reads them all")
            return source, []
        if scan == "none" or not first:
            return source, []
        faults, copies = look_through(source, scan)
        if record is not None and copies:
            write_rows(record.with_name(DUPLICATES), Copy, copies)
        if faults:
            raise ValueError(refusal(faults, source, scan, record))
        return source, copies
    if record is None:
        faults, copies = look_through(source, "decode")
    else:
        record.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(record.with_name(f".{record.name}.lock")):  # of several ranks, one scans
            if not record.is_file():
                faults, copies = look_through(source, "decode")
                if copies:
                    write_rows(record.with_name(DUPLICATES), Copy, copies)
                write_rows(record, Fault, faults)  # last: it says that the scan was finished
            faults, copies = read_rows(record, Fault), read_rows(record.with_name(DUPLICATES), Copy)
    return left_out(source, faults, max_skipped, record), copies


def look_through(source: Source, scan: Scan) -> tuple[list[Fault], list[Copy]]:
    """All bad files, in order, and all files with equal content where the scan decodes."""
    splits = {name: split for name, split in source.splits.items() if split.files}
    names = [name for name, split in splits.items() for _ in split.labels]
    labels = [source.classes[label] for split in splits.values() for label in split.labels.tolist()]
    paths = chain.from_iterable(split.files or [] for split in splits.values())
    root = common_folder(source)
    check, what = (header_problem, "headers of") if scan == "headers" else (content_problem, "whole of")
    start = told = time.monotonic()
    found: list[tuple[str, str]] = []
    # Python's own work is one thread at a time: more threads help those that wait for a disk or decode
    with quiet(), ThreadPoolExecutor(THREADS if scan == "headers" else launch.cores()) as pool:
        while part := list(islice(paths, 1024)):
            found += pool.map(check, part)
            if (now := time.monotonic()) - told > 10:
                told = now
                rate = len(found) / (now - start)
                log.info("read the %s %d of %d images, %.0f a second", what, len(found), len(names), rate)
    seconds = time.monotonic() - start
    log.info("read the %s %d images in %.1f s, %.0f a second", what, len(names), seconds, len(names) / seconds)
    faults: list[Fault] = []
    groups: dict[str, list[Copy]] = {}
    paths = chain.from_iterable(split.files or [] for split in splits.values())
    for path, name, label, (reason, digest) in zip(paths, names, labels, found, strict=True):
        if reason:
            faults.append(Fault(path.removeprefix(root), name, reason))
        if digest:
            groups.setdefault(digest, []).append(Copy(digest, path.removeprefix(root), name, label))
    return faults, [copy for group in groups.values() if len(group) > 1 for copy in group]


def header_problem(path: str) -> tuple[str, str]:
    """What is wrong with a file as its header tells; '' for nothing, and '' for its content's digest."""
    try:
        check_header(path)
    except Exception as error:  # a decoder meets any bytes
        return blamed(path, error), ""
    return "", ""


def content_problem(path: str) -> tuple[str, str]:
    """What is wrong with a file when it is decoded, or '', and the digest of a good file's content."""
    try:
        data = read_bytes(path)
    except NoImage as error:
        return explained(error), ""
    except Exception as error:  # of a disk, a network or a limit
        raise spared(path, error, AGAIN) from error
    try:
        decode(data)
    except Exception as error:
        return blamed(path, error), ""
    return "", hashlib.blake2b(data, digest_size=16).hexdigest()


def blamed(path: str, error: Exception) -> str:
    """What is wrong with an image. Raises `UnreadableImage` where it is not at fault."""
    if image_is_at_fault(error):
        return explained(error)
    raise spared(path, error, AGAIN) from error


def refusal(faults: list[Fault], source: Source, scan: Scan, record: Path | None) -> str:
    """The error of `on_error=raise`."""
    total, root = sum(map(len, source.splits.values())), common_folder(source)
    lines = [f"  - {root}{path}: {reason}" for path, _, reason in faults[:SHOWN]]
    if len(faults) > SHOWN:
        where = ""
        if record is not None:
            record.parent.mkdir(parents=True, exist_ok=True)
            write_rows(file := record.with_name(BAD), Fault, faults)
            where = f", all listed in {file}"
        lines.append(f"  - and {len(faults) - SHOWN} more{where}")
    return "\n".join(
        [
            f"{len(faults)} of {total} images can't be used (data.scan={scan}):",
            *lines,
            "replace or remove them, or leave them out: data.on_error=skip",
        ]
    )


def left_out(source: Source, faults: list[Fault], max_skipped: float, record: Path | None) -> Source:
    """The source without the files of `faults`. Raises `ValueError` where that is too many, or all of a class."""
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


def tell_copies(copies: list[Copy], splits: Mapping[SplitName, Split], root: str, record: Path | None) -> None:
    """Warns of files with equal content in several splits, as they were cut; nothing is changed."""
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
    """The folder that all files lie in, with a slash at its end: paths below it stay true where it is moved."""
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


def write_rows(file: Path, kind: type[Fault] | type[Copy], rows: list[Fault] | list[Copy]) -> None:
    """A reader, or a power cut, finds the whole file or none."""
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
    """What `write_rows` wrote; nothing where there is no such file."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as text:
        return [kind(*row) for row in list(csv.reader(text))[1:]]
