"""The end of packing: report broken images, write the indices and the manifest, which complete a set."""

import csv
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config.schema import Node
from vitlab.data.packing import manifest, mtimes
from vitlab.data.packing.shard_writer import ShardWriter
from vitlab.data.scan import BadFile, listed
from vitlab.storage.atomic import atomic_write

log = logging.getLogger(__name__)

BROKEN = "broken.csv"


def finalize(writer: ShardWriter, plan: Node, *, name: str, on_error: str, max_skipped: float) -> Node:
    """Write the indices and the manifest of shards that are all written, and return the manifest.

    Raises `ValueError` for broken images that may not be left out, and for a class that has none left.
    """
    out, source = writer.out, writer.source
    records = [json.loads(writer.record_file(number).read_text()) for number in range(len(writer))]
    broken = [BadFile(*fields) for record in records for fields in record["broken"]]
    if broken:
        with (file := out / manifest.WORK / BROKEN).open(
            "w", newline="", encoding="utf-8", errors="surrogateescape"
        ) as f:
            csv.writer(f).writerows([BadFile._fields, *broken])
        total = sum(map(len, source.splits.values()))
        check_broken(broken, total, file, on_error=on_error, max_skipped=max_skipped)
        file.replace(out / BROKEN)
        log.warning("left out %d of %d images, listed in %s", len(broken), total, out / BROKEN)
    splits: Node = {}
    for split, images in source.splits.items():
        tables, shards = [np.zeros(0, manifest.ENTRY)], list[Node]()
        for number, record in enumerate(records):
            if record["split"] == split and record["images"]:
                tables.append(np.load(writer.record_file(number).with_suffix(".npy"), allow_pickle=False))
                tables[-1]["shard"] = len(shards)
                shards.append({key: record[key] for key in ("file", "images", "bytes", "sha256")})
        table: np.ndarray[Any, Any] = np.concatenate(tables)
        if (lost := np.setdiff1d(images.labels.numpy(), table["label"])).size:
            raise ValueError(f"no image of the class {source.classes[lost[0]]!r} in {split} can be decoded")
        splits[split] = manifest.write_index(out, split, table, shards, source.classes)
    atomic_write(out / mtimes.NAME, json.dumps(writer.packed_from).encode())
    grey = source.channels == 1
    content = manifest.write_manifest(
        out,
        name=name,
        classes=list(source.classes),
        mean=list(source.mean * 3 if grey else source.mean),
        std=list(source.std * 3 if grey else source.std),
        broken=len(broken),
        splits=splits,
        plan=plan,
    )
    shutil.rmtree(out / manifest.WORK)
    return content


def check_broken(broken: list[BadFile], total: int, file: Path, *, on_error: str, max_skipped: float) -> None:
    """Raise `ValueError` where broken images may not be left out, or not so many."""
    lines = listed([f"{fault.path}: {fault.reason}" for fault in broken])
    if on_error == "raise":
        raise ValueError(
            f"{len(broken)} of {total} images can't be decoded, listed in {file}; the others are packed. Replace them, "
            f"or leave them out with data.on_error=skip, and repeat the command:{lines}"
        )
    if len(broken) > max_skipped * total:
        raise ValueError(
            f"data.on_error=skip would leave out {len(broken)} of {total} images ({len(broken) / total:.2%}), more "
            f"than data.max_skipped={max_skipped:g} allows, listed in {file}; raise that:{lines}"
        )
