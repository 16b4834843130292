"""The end of packing: report broken images, write the indices and the manifest, which complete a set."""

import json
import logging
import shutil

import numpy as np

from vitlab.config.schema import Node
from vitlab.data.packing import manifest, mtimes
from vitlab.data.packing.shard_writer import ShardWriter
from vitlab.data.scan import BadFile, listed, write_rows
from vitlab.storage.atomic import atomic_write

log = logging.getLogger(__name__)

BROKEN = "broken.csv"


def finalize(writer: ShardWriter, plan: Node, *, name: str, on_error: str, max_skipped: float) -> Node:
    """Write the indices and the manifest of shards that are all written, and return the manifest.

    Raises `ValueError` for broken images that may not be left out, and for a class that has none left.
    """
    out, source, shards = writer.out, writer.source, dict[str, list[tuple[manifest.Table, Node]]]()
    records = [json.loads(writer.record_file(number).read_text()) for number in range(len(writer))]
    broken = [BadFile(*fields) for record in records for fields in record["broken"]]
    if broken:
        file, total = out / manifest.WORK / BROKEN, sum(map(len, source.splits.values()))
        write_rows(file, BadFile, broken)
        if on_error == "raise" or len(broken) > max_skipped * total:
            allowed = "" if on_error == "raise" else f", more than data.max_skipped={max_skipped:g} allows; raise that"
            raise ValueError(
                f"{len(broken)} of {total} images ({len(broken) / total:.2%}) can't be decoded, listed in {file}; the "
                f"others are packed. Replace them, or leave them out with data.on_error=skip{allowed}, and repeat the "
                f"command:{listed([f'{fault.path}: {fault.reason}' for fault in broken])}"
            )
        file.replace(out / BROKEN)
        log.warning("left out %d of %d images, listed in %s", len(broken), total, out / BROKEN)
    for split, images in source.splits.items():
        shards[split] = [
            (np.load(writer.record_file(number).with_suffix(".npy"), allow_pickle=False), record["shard"])
            for number, record in enumerate(records)
            if record["split"] == split and record["images"]
        ]
        if lost := set(images.labels.tolist()).difference(*(table["label"].tolist() for table, _ in shards[split])):
            raise ValueError(f"no image of the class {source.classes[min(lost)]!r} in {split} can be decoded")
    atomic_write(out / mtimes.NAME, json.dumps(writer.stamps).encode())
    mean, std = (list(values * 3 if source.channels == 1 else values) for values in (source.mean, source.std))
    about = {"name": name, "mean": mean, "std": std, "broken": len(broken), "plan": plan}
    content = manifest.write_manifest(out, shards, classes=source.classes, **about)
    shutil.rmtree(out / manifest.WORK)
    return content
