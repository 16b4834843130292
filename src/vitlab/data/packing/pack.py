"""Pack a data set into shards, in parallel and resumable, and verify them.

Each complete shard has a record in `.prepare/`; only shards without one are written. At the end, the indices and
`prepared.json` are written, and `.prepare/` is removed.
"""

import json
import logging
import re
import shutil
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from vitlab.config.schema import Node, format_value
from vitlab.data.packing import manifest
from vitlab.data.packing.shard_writer import Settings, ShardWriter
from vitlab.data.scan import BadFile, bullets
from vitlab.data.source import Source
from vitlab.distributed import environment
from vitlab.runs.lock import folder_lock
from vitlab.storage.atomic import atomic_write, write_csv
from vitlab.storage.remote import Storage

log = logging.getLogger(__name__)

LOCK = ".prepare.lock"
LOCK_TIMEOUT = 20  # seconds; the processes of a killed program end earlier
BROKEN = "broken.csv"


def folder_problem(out: Path) -> str | None:
    """Why a folder can't be packed into; None if it is new, empty, or has a set, complete or not."""
    if not out.exists() or (out / manifest.WORK).is_dir() or (out / manifest.NAME).is_file():
        return None
    if not out.is_dir():
        return f"out={out} is a file; name a folder"
    others = ", ".join(sorted({entry.name for entry in out.iterdir()} - {LOCK})[:3])
    return f"out={out} holds something else ({others}); name a new or empty folder" if others else None


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
    """Pack the missing shards of a data set named `name`, and return the command's results.

    Broken images raise an error at the end, or with `on_error="skip"` are skipped, up to a share of `max_skipped`. With
    `processes=0`, this process reads and encodes; None: one per core.

    Raises:
        ValueError: the folder is in use or holds something else; images are broken; a class has none left.
        UnreadableImage: an image can't be read because of a disk, a network, a limit or memory.
    """
    start = time.monotonic()
    if (problem := folder_problem(out)) is not None:
        raise ValueError(problem)
    complete, work = out / manifest.NAME, out / manifest.WORK
    with ExitStack() as stack:
        try:
            remedy = "make sure that only one process packs into it"
            stack.enter_context(folder_lock(out, LOCK, remedy, timeout=LOCK_TIMEOUT))
        except TimeoutError:
            raise ValueError(f"{out} is being packed by another process; wait for it, or end it") from None

        def remove_lock() -> None:
            if complete.is_file():  # also for a process that waits for the lock
                (out / LOCK).unlink(missing_ok=True)

        stack.callback(remove_lock)
        for file in out.rglob(".*"):
            if re.fullmatch(r"\..+\.\d+", file.name):  # a killed process was writing it
                file.unlink()
        plan, writer, begun = packing_plan(source, settings), ShardWriter(source, settings, out), work / "plan.json"
        for file in (complete, begun):
            before: Node = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"plan": plan}
            if differs := differences(before.get("plan", {}), plan):
                raise ValueError(f"out={out} was packed with other settings ({differs}); use those, or another folder")
        if complete.is_file():
            log.info("%s exists already and is what this command makes", out)
            return manifest.log_results(json.loads(complete.read_text(encoding="utf-8")), seconds=0.0)
        work.mkdir(exist_ok=True)
        atomic_write(begun, json.dumps({"plan": plan}))
        images = write_missing_shards(writer, processes)
        content = finalize(writer, plan, name=name, on_error=on_error, max_skipped=max_skipped)
        return manifest.log_results(content, seconds=time.monotonic() - start, images=images)


def packing_plan(source: Source, settings: Settings) -> Node:
    """All that the shards depend on; packing is resumed only if it is the same."""
    splits = {name: {"images": len(split), "content": split.digest()} for name, split in source.splits.items()}
    return {**vars(settings), "source": source.name, "classes": list(source.classes), "splits": splits}


def differences(before: Node, now: Node) -> str:
    pairs = {key: (before.get(key), now.get(key)) for key in {**before, **now}}
    return "; ".join(
        f"other {key}" if isinstance(new, dict | list) else f"{key}: {format_value(old)} there, {format_value(new)} now"
        for key, (old, new) in pairs.items()
        if old != new
    )


def write_missing_shards(writer: ShardWriter, processes: int | None) -> int:
    """Write the shards that have no record, or broken images, and return their number of images."""
    records = [writer.record_file(number) for number in range(len(writer))]
    missing = [n for n, file in enumerate(records) if not file.is_file() or json.loads(file.read_text())["broken"]]
    total = sum(writer.jobs[number][3] - writer.jobs[number][2] for number in missing)
    if len(missing) < len(writer):
        log.info("resuming: %d of %d shards are there", len(writer) - len(missing), len(writer))
    workers = min(environment.cores() if processes is None else processes, len(missing))
    # `processes` may be more than the cores
    warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes")
    prefetch = 1 if workers else None
    loader = DataLoader(writer, batch_size=None, sampler=missing, num_workers=workers, prefetch_factor=prefetch)
    start = last = time.monotonic()
    done = 0
    for record in loader:
        done += record["images"] + len(record["broken"])
        if (now := time.monotonic()) - last > 10:
            last, rate = now, done / (now - start)
            log.info("packed %d of %d images, %.0f a second, %.0f s left", done, total, rate, (total - done) / rate)
    return done


def finalize(writer: ShardWriter, plan: Node, *, name: str, on_error: str, max_skipped: float) -> Node:
    """Report broken images, write the indices and the manifest, and return the manifest."""
    out, source, shards = writer.out, writer.source, dict[str, list[tuple[manifest.Table, Node]]]()
    records = [json.loads(writer.record_file(number).read_text()) for number in range(len(writer))]
    broken = [BadFile(*fields) for record in records for fields in record["broken"]]
    if broken:
        file, total = out / manifest.WORK / BROKEN, sum(map(len, source.splits.values()))
        write_csv(file, [BadFile._fields, *broken])
        if on_error == "raise" or len(broken) > max_skipped * total:
            allowed = "" if on_error == "raise" else f", more than data.max_skipped={max_skipped:g} allows; raise that"
            lines = bullets([f"{image.path}: {image.reason}" for image in broken])
            raise ValueError(
                f"{len(broken)} of {total} images ({len(broken) / total:.2%}) can't be decoded, listed in {file}; the "
                f"others are packed. Replace them, or skip them with data.on_error=skip{allowed}, and repeat the "
                f"command:{lines}"
            )
        file.replace(out / BROKEN)
        log.warning("skipped %d of %d images, listed in %s", len(broken), total, out / BROKEN)
    for split, images in source.splits.items():
        shards[split] = [
            (np.load(writer.record_file(number).with_suffix(".npy"), allow_pickle=False), record["shard"])
            for number, record in enumerate(records)
            if record["split"] == split and record["images"]
        ]
        if lost := set(images.labels.tolist()).difference(*(table["label"].tolist() for table, _ in shards[split])):
            raise ValueError(f"no image of the class {source.classes[min(lost)]!r} in {split} can be decoded")
    mean, std = (list(values * 3 if source.channels == 1 else values) for values in (source.mean, source.std))
    facts = {"name": name, "mean": mean, "std": std, "broken": len(broken), "plan": plan}
    content = manifest.write_manifest(out, shards, classes=source.classes, **facts)
    shutil.rmtree(out / manifest.WORK)
    return content


def verify(folder: Path) -> Node:
    """Compare every checksum of a packed set, and return the command's results. Raises `NotShardedData`."""
    start = time.monotonic()
    content = manifest.read_manifest(Storage(str(folder)))
    manifest.check_files(folder, content, checksums=True)
    log.info("all checksums are right")
    return manifest.log_results(content, seconds=time.monotonic() - start)
