"""The end of packing: what was broken is told, and the indices and the manifest are written, which make a set whole."""

import csv
import io
import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vitlab.data import containers, manifest, stamps
from vitlab.data.manifest import WORK
from vitlab.data.scan import BadFile, listed
from vitlab.runs import replace
from vitlab.schema import Node

if TYPE_CHECKING:
    from vitlab.data.packing import Shards

log = logging.getLogger(__name__)

BROKEN = "broken.csv"


def finished(shards: "Shards", wanted: Node, *, name: str, on_error: str, max_skipped: float) -> Node:
    """Writes the indices and the manifest of shards that are all there. Raises `ValueError` for what is broken."""
    out, source, settings = shards.out, shards.source, shards.settings
    records = [json.loads(shards.record(number).read_text()) for number in range(len(shards))]
    faults = [BadFile(*fault) for record in records for fault in record["faults"]]
    total = sum(map(len, source.splits.values()))
    if faults:
        with (file := out / WORK / BROKEN).open("w", newline="", encoding="utf-8", errors="surrogateescape") as text:
            csv.writer(text).writerows([BadFile._fields, *faults])
        refuse(faults, total, file, on_error=on_error, max_skipped=max_skipped)
        file.replace(out / BROKEN)
        log.warning("left out %d of %d images, listed in %s", len(faults), total, out / BROKEN)
    splits: Node = {}
    for split in source.splits:
        parts, files = list[np.ndarray[Any, Any]](), list[Node]()
        for number, record in enumerate(records):
            if record["split"] == split and record["images"]:
                part = np.load(shards.record(number).with_suffix(".npy"), allow_pickle=False)
                part["shard"] = len(files)
                parts.append(part)
                files.append({key: record[key] for key in ("file", "images", "bytes", "sha256")})
        table = np.concatenate(parts) if parts else np.zeros(0, manifest.ENTRY)
        counts = np.bincount(table["label"], minlength=len(source.classes)).tolist()
        before = torch.bincount(source.splits[split].labels, minlength=len(source.classes)).tolist()
        for label, (had, has) in enumerate(zip(before, counts, strict=True)):
            if had and not has:
                raise ValueError(f"no image of the class {source.classes[label]!r} in {split} can be decoded")
        replace(index := out / manifest.index_file(split), array_bytes(table))
        if settings.to == "litdata":
            replace(out / split / "index.json", containers.litdata_index(out / WORK / "making-index", files).encode())
        size = sum(file["bytes"] for file in files)
        splits[split] = {
            "images": len(table),
            "bytes": size,
            "index": manifest.digest(index),
            "classes": dict(zip(source.classes, counts, strict=True)),
            "shards": files,
        }
    replace(out / stamps.NAME, json.dumps(shards.packed_from).encode())
    grey = source.channels == 1
    content = described(
        out,
        name=name,
        format=settings.to,
        classes=list(source.classes),
        mean=list(source.mean * 3 if grey else source.mean),
        std=list(source.std * 3 if grey else source.std),
        broken=len(faults),
        splits=splits,
        plan=wanted,
    )
    shutil.rmtree(out / WORK)
    return content


def described(folder: Path, **said: Any) -> Node:
    """Writes what a set says of itself, without which nothing reads it, and returns that."""
    content = {"vitlab": manifest.VERSION, **said}
    replace(folder / manifest.NAME, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return content


def refuse(faults: list[BadFile], total: int, file: Path, *, on_error: str, max_skipped: float) -> None:
    """Raises `ValueError` where broken images may not be left out, or not so many."""
    shown = listed([f"{fault.path}: {fault.reason}" for fault in faults])
    if on_error == "raise":
        raise ValueError(
            f"{len(faults)} of {total} images can't be decoded, listed in {file}; the rest is packed. Replace them, "
            f"or leave them out with data.on_error=skip, and give the command again:{shown}"
        )
    if len(faults) > max_skipped * total:
        raise ValueError(
            f"data.on_error=skip would leave out {len(faults)} of {total} images ({len(faults) / total:.2%}), more "
            f"than data.max_skipped={max_skipped:g} allows, listed in {file}; raise that:{shown}"
        )


def told(content: Node, *, seconds: float, made: int) -> Node:
    """Says what a packed set is, a line for each split, and returns it as the command's results."""
    results: Node = {"format": content["format"], "broken": content["broken"], "seconds": round(seconds, 1)}
    log.info("%-6s %10s %8s %7s   %s", "split", "images", "MB", "shards", "images of a class")
    for split, part in content["splits"].items():
        counts = list(part["classes"].values())
        spread = f"{min(counts)} to {max(counts)} in {len(counts)} classes"
        sizes = (part["images"], part["bytes"] / 1e6, len(part["shards"]))
        log.info("%-6s %10d %8.1f %7d   %s", split, *sizes, spread)
        results |= {f"{split}/images": sizes[0], f"{split}/bytes": part["bytes"], f"{split}/shards": sizes[2]}
    rate = f", {made / seconds:.0f} images a second" if made and seconds else ""
    log.info("%d broken; %.1f s%s", content["broken"], seconds, rate)
    return results


def array_bytes(table: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, table, allow_pickle=False)
    return file.getvalue()
