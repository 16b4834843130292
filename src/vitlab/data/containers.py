"""One shard on the disk, as LitData, WebDataset or a folder has it: written beside its place and moved there whole.

    litdata      SPLIT/chunk-0-N.bin, items (bytes, int), and SPLIT/index.json: litdata.StreamingDataset(SPLIT)
    webdataset   SPLIT/NNNNNN.tar, 000000123.jpg beside 000000123.cls: webdataset.WebDataset(SPLIT/{...}.tar)
    folder       SPLIT/CLASS/000000123.jpg

Both libraries write their own formats. Where each image came to lie is looked up in what they wrote, so that an image
is in the index only where its very bytes are in the file.
"""

import hashlib
import json
import mmap
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitlab.checkpoints import synchronised
from vitlab.data.manifest import KINDS, class_folders, digest, kind_of


class Item(NamedTuple):
    """An image to be packed."""

    data: bytes
    label: int
    number: int  # its place in the packed split


class Written(NamedTuple):
    """A shard on the disk."""

    file: str  # within the data set
    bytes: int
    sha256: str
    offsets: list[int]  # of each image within it; of images in folders, the number in its name


def write(
    form: str, root: Path, scratch: Path, split: str, shard: int, items: Sequence[Item], classes: Sequence[str]
) -> Written:
    """Writes a shard below `root`, in the format `form`; `scratch` is an empty folder on the same disk."""
    if form == "folder":
        return write_folder(root, scratch, split, items, classes)
    if form == "litdata":
        name = f"{split}/chunk-0-{shard}.bin"
        made = write_litdata(scratch, shard, items)
    else:
        name = f"{split}/{shard:06d}.tar"
        made = write_webdataset(scratch / "shard.tar", items)
    offsets = located(made, items)
    sha256 = digest(made)
    return Written(name, placed(made, root / name), sha256, offsets)


def placed(made: Path, target: Path) -> int:
    """Moves a finished file to its place, and returns its size."""
    synchronised(made)
    target.parent.mkdir(parents=True, exist_ok=True)
    size = made.stat().st_size
    made.replace(target)
    return size


def write_litdata(scratch: Path, shard: int, items: Sequence[Item]) -> Path:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(scratch), chunk_size=len(items), chunk_index=shard)
    for number, item in enumerate(items):
        writer[number] = (item.data, item.label)
    writer.done()
    (made,) = scratch.glob("*.bin")
    return made


def write_webdataset(file: Path, items: Sequence[Item]) -> Path:
    from webdataset import TarWriter

    with file.open("wb") as opened, TarWriter(opened, encoder=False, mtime=0) as writer:
        for item in items:
            named = {"__key__": f"{item.number:09d}", KINDS[kind_of(item.data)]: item.data}
            writer.write({**named, "cls": str(item.label).encode()})
    return file


def write_folder(root: Path, scratch: Path, split: str, items: Sequence[Item], classes: Sequence[str]) -> Written:
    """Images of no one file: the checksum is of all their bytes, one after the other."""
    whole, size, folders = hashlib.sha256(), 0, class_folders(classes)
    for item in items:
        name = f"{item.number:09d}.{KINDS[kind_of(item.data)]}"
        (scratch / name).write_bytes(item.data)
        size += placed(scratch / name, root / split / folders[item.label] / name)
        whole.update(item.data)
    return Written("", size, whole.hexdigest(), [item.number for item in items])


def located(file: Path, items: Sequence[Item]) -> list[int]:
    """Where in a file each image's bytes are. Raises `RuntimeError` where they aren't."""
    found, at = list[int](), 0
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for item in items:
            place = content.find(item.data, at)
            if place < 0:
                raise RuntimeError(f"{file} doesn't hold image {item.number} as it is; was it compressed?")
            found.append(place)
            at = place + len(item.data)
    return found


def litdata_index(scratch: Path, shards: Sequence[dict[str, Any]]) -> str:
    """LitData's own index of a split: its configuration is what its writer says of a chunk of one item."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write_litdata(scratch, 0, [Item(b"image", 0, 0)])
    (file,) = scratch.glob("*index.json")
    config = json.loads(file.read_text())["config"] | {"chunk_size": max(shard["images"] for shard in shards)}
    chunks = [
        {
            "chunk_bytes": shard["bytes"],
            "chunk_size": shard["images"],
            "dim": None,
            "filename": Path(shard["file"]).name,
        }
        for shard in shards
    ]
    return json.dumps({"chunks": chunks, "config": config}, sort_keys=True)
