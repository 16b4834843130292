"""A data set becomes shards: in parallel, shard after shard, so that what was killed goes on where it was.

A shard is a function of the images and the settings alone. Each, once it is in its place, has a record in `.prepare/`;
what has none is made again. When all are there, the indices are written, then `prepared.json`, and `.prepare/` goes.
"""

import json
import logging
import shutil
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitlab import launch
from vitlab.data import containers, manifest, stamps
from vitlab.data.decode import is_out_of_memory, read_error_not_skipped
from vitlab.data.encoding import BrokenImage, encoded
from vitlab.data.finishing import array_bytes, finished, told
from vitlab.data.manifest import WORK
from vitlab.data.sampler import cut, shuffled_blocks, stable_seed
from vitlab.data.scan import BadFile
from vitlab.data.source import Source, Split
from vitlab.data.storage import INSTALL, not_installed
from vitlab.runs import replace, unwritable
from vitlab.schema import Node, shown

log = logging.getLogger(__name__)

LOCK = ".prepare.lock"
LINGERS = 20  # seconds in which the processes of a program that was killed have ended
BUFFER = 10_000  # of what is read in blocks: among how many images those of a shard are drawn


@dataclass(frozen=True)
class Settings:
    """How a data set is packed; `problems` says what is possible."""

    to: str
    size: int | None
    quality: int | None
    shard_images: int
    shuffle: bool
    seed: int


def problems(
    *, to: str | None, size: int | None, quality: int | None, shard_images: int | None, out: Path | None
) -> Iterator[str]:
    """What is wrong with settings, before anything is read; None: not set, or known to be wrong already."""
    for package in ("litdata", "webdataset"):
        if to == package and not_installed(package):
            yield f"to={to} is written with the package {package}, which isn't installed: {INSTALL}"
    for knob, value in (("size", size), ("shard_images", shard_images)):
        if value is not None and value < 1:
            yield f"{knob}={value} must be at least 1"
    if quality is not None and not 1 <= quality <= 100:
        yield f"quality={quality} must lie in 1 .. 100, or be null for PNG"
    if out is not None and (problem := occupied(out) or unwritable("out", out.absolute())) is not None:
        yield problem


def occupied(out: Path) -> str | None:
    """Why a folder can't be packed into; None where it is new or empty, was begun by a run that ended, or is done."""
    if not out.exists():
        return None
    if not out.is_dir():
        return f"out={out} is a file; name a folder"
    if (out / WORK).is_dir() or (out / manifest.NAME).is_file():
        return None
    if others := sorted({entry.name for entry in out.iterdir()} - {LOCK}):
        return f"out={out} holds something else ({', '.join(others[:3])}); name a new or empty folder"
    return None


class Shards(Dataset[Node]):
    """All shards of a data set, each made when it is asked for; the answer is its record.

    Args:
        source: What is packed.
        orders: For each split, its images in the order in which they are packed, int64 [n].
        settings: How.
        out: Where to.
    """

    def __init__(self, source: Source, orders: Mapping[str, Tensor], settings: Settings, out: Path) -> None:
        self.source, self.orders, self.settings, self.out = source, orders, settings, out
        found = {name: stamps.stamps(split) for name, split in source.splits.items()}
        self.packed_from = {name: stamps.digest(images) for name, images in found.items()}
        self.jobs = [
            (split, shard, part.start, part.stop)
            for split, order in orders.items()
            for shard, part in enumerate(cut(len(order), -(-len(order) // settings.shard_images)))
        ]
        self.stamps = [stamps.digest(found[name][orders[name][start:stop]]) for name, _, start, stop in self.jobs]

    def __len__(self) -> int:
        return len(self.jobs)

    def record(self, number: int) -> Path:
        """Where a shard's record is once it is made."""
        split, shard, _, _ = self.jobs[number]
        return self.out / WORK / f"{split}-{shard:06d}.json"

    def __getitem__(self, number: int) -> Node:
        name, shard, start, stop = self.jobs[number]
        split, settings = self.source.splits[name], self.settings
        items, rows, faults = list[containers.Item](), list[int](), list[BadFile]()
        for place, row in enumerate(self.orders[name][start:stop].tolist(), start):
            try:
                data = encoded(split, row, size=settings.size, quality=settings.quality)
            except BrokenImage as error:
                faults.append(BadFile(image_name(split, row, name), name, str(error)))
                continue
            except Exception as error:  # to leave out images for it would lose good ones
                lacking = "processes=N with fewer needs less memory; " if is_out_of_memory(error) else ""
                way_on = f"{lacking}the same command goes on, once that is mended"
                raise read_error_not_skipped(image_name(split, row, name), error, way_on) from error
            items.append(containers.Item(data, int(split.labels[row]), place))
            rows.append(row)
        record: Node = {"split": name, "shard": shard, "faults": faults, "images": len(items)}
        record["stamp"] = self.stamps[number]
        scratch = self.out / WORK / f"making-{number}"
        shutil.rmtree(scratch, ignore_errors=True)
        if items:
            scratch.mkdir(parents=True)
            written = containers.write(settings.to, self.out, scratch, name, shard, items, self.source.classes)
            record |= {"file": written.file, "bytes": written.bytes, "sha256": written.sha256}
            table = np.zeros(len(items), manifest.ENTRY)
            for entry, item, row, offset in zip(table, items, rows, written.offsets, strict=True):
                entry["offset"], entry["size"], entry["crc"] = offset, len(item.data), zlib.crc32(item.data)
                entry["label"], entry["row"], entry["kind"] = item.label, row, manifest.kind_of(item.data)
            replace(self.record(number).with_suffix(".npy"), array_bytes(table))
        replace(self.record(number), json.dumps(record).encode())
        shutil.rmtree(scratch, ignore_errors=True)
        return record


def image_name(split: Split, row: int, name: str) -> str:
    """What an image is called in lists of broken ones."""
    return str(split.files[row]) if split.files is not None else f"{name}/{row}"


def orders(source: Source, settings: Settings) -> dict[str, Tensor]:
    """In which order each split is packed: train shuffled, by the seed alone, the others as they are.

    What is read in blocks is shuffled so that few of them are in use at a time.
    """
    found = {name: torch.arange(len(split)) for name, split in source.splits.items()}
    if settings.shuffle:
        generator = torch.Generator().manual_seed(stable_seed(settings.seed))
        samples, blocks = len(source.train), source.train.blocks
        sizes = [len(part) for part in cut(samples, -(-samples // settings.shard_images))]
        if blocks is None:
            found["train"] = torch.randperm(samples, generator=generator)
        else:
            found["train"] = shuffled_blocks(blocks, sizes, BUFFER, generator)
    return found


def plan(source: Source, settings: Settings) -> Node:
    """What decides the shards: a run that was cut off is gone on with only where this is the same."""
    splits: Node = {}
    for name, split in source.splits.items():
        splits[name] = {"images": len(split), "content": split.digest()}
    return {**vars(settings), "source": source.name, "classes": list(source.classes), "splits": splits}


@contextmanager
def owned(out: Path) -> Iterator[None]:
    """Keeps a second process out of a folder. Raises `ValueError` where there is one."""
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=LINGERS)
    except Timeout:
        raise ValueError(f"out={out} is being packed by another process; wait for it, or end it") from None
    try:
        yield
    finally:
        if (out / manifest.NAME).is_file():  # who waits for it finds that all is done
            (out / LOCK).unlink(missing_ok=True)
        lock.release()


def pack(
    source: Source,
    settings: Settings,
    out: Path,
    *,
    name: str,
    on_error: str = "raise",
    max_skipped: float = 0.01,
    processes: int | None = None,
) -> Node:
    """Packs a data set, or what is left of it, and returns what was made.

    Args:
        source: What is packed.
        settings: How.
        out: Where to.
        name: What the set is called.
        on_error: `raise`: an image that can't be decoded is an error, once all are known. `skip`: it is left out.
        max_skipped: Share of the images above which `skip` refuses.
        processes: That read and encode; 0: this one; None: one for each core.

    Raises:
        ValueError: the folder is in use or holds something else; images are broken; a class has none left.
        UnreadableImage: the machine failed to read one: its disk, a network, a limit, memory.
    """
    begun = time.monotonic()
    if (problem := occupied(out)) is not None:
        raise ValueError(problem)
    if settings.to == "folder" and (names := manifest.class_folders(source.classes)) != sorted(names):
        remedy = f"data.source.classes=[{','.join(names)}] keeps the labels"
        log.warning("data=image_folder takes the classes in another order, sorted by name: %s", remedy)
    with owned(out):
        wanted = plan(source, settings)
        shards = Shards(source, orders(source, settings), settings, out)
        if (out / manifest.NAME).is_file():
            content: Node = json.loads((out / manifest.NAME).read_text(encoding="utf-8"))
            if differs := differences(content.get("plan", {}), wanted):
                raise ValueError(f"out={out} holds another packed set ({differs}); name another folder")
            if (before := out / stamps.NAME).is_file() and json.loads(before.read_text()) != shards.packed_from:
                raise ValueError(
                    f"out={out} was packed from images of which files have other sizes or times now; name another "
                    f"folder, or remove {out} to pack it anew"
                )
            log.info("%s is there already, and is what this command makes", out)
            return told(content, seconds=0.0, made=0)
        work = out / WORK
        work.mkdir(exist_ok=True)
        noted = work / "plan.json"
        if noted.is_file():
            if differs := differences(json.loads(noted.read_text(encoding="utf-8")), wanted):
                raise ValueError(
                    f"out={out} was begun otherwise ({differs}); finish it as it was begun, or name another folder"
                )
        else:
            replace(noted, json.dumps(wanted).encode())
        for left in (*work.glob("making-*"), *work.glob(".*")):  # of a process that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        stamps.forget_changed(shards)
        made = make_missing(shards, processes)
        content = finished(shards, wanted, name=name, on_error=on_error, max_skipped=max_skipped)
        return told(content, seconds=time.monotonic() - begun, made=made)


def differences(before: Node, now: Node) -> str:
    """What differs between two plans, in a line; empty where nothing does."""
    found = []
    for key in now:
        if before.get(key) != now[key]:
            plain = not isinstance(now[key], dict | list)
            found.append(f"{key}: {shown(before.get(key))} there, {shown(now[key])} now" if plain else f"other {key}")
    return "; ".join(found)


def make_missing(shards: Shards, processes: int | None) -> int:
    """Makes the shards that have no record, tells how far that is, and returns how many images they have."""
    missing = [number for number in range(len(shards)) if not shards.record(number).is_file()]
    total = sum(shards.jobs[number][3] - shards.jobs[number][2] for number in missing)
    if len(missing) < len(shards):
        log.info("going on: %d of %d shards are there", len(shards) - len(missing), len(shards))
    workers = min(launch.cores() if processes is None else processes, len(missing))
    if processes is not None and 0 < workers < processes:
        log.info("processes=%d: %d are enough, one for each shard that is to be made", processes, workers)
    # processes that were asked for, on however many cores
    warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes")
    loader: DataLoader[Node] = DataLoader(
        shards,
        batch_size=None,
        sampler=missing,
        num_workers=workers,
        collate_fn=as_it_is,  # type: ignore[arg-type]  # there are no batches
        prefetch_factor=1 if workers else None,
    )
    start = last = time.monotonic()
    done = broken = 0
    for record in loader:
        done += record["images"] + len(record["faults"])
        broken += len(record["faults"])
        if (now := time.monotonic()) - last > 10:
            last = now
            rate = done / (now - start)
            left = (total - done) / rate
            log.info("packed %d of %d images, %.0f a second, %d broken, %.0f s left", done, total, rate, broken, left)
    return done


def as_it_is(record: Node) -> Node:
    return record
