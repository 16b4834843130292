"""Packs a data set into shards, once, so that training reads few large files instead of a million small ones.

    python src/prepare.py data=image_folder data_dir=imagenet size=256 out=imagenet-256
    python src/train.py data=shards data_dir=imagenet-256
    python src/prepare.py data=cifar10 to=webdataset out=cifar10-tar
    python src/prepare.py verify=imagenet-256        compares every checksum
    python src/prepare.py index=tars                 has data=shards read a WebDataset from elsewhere

Killed at any time, the same command goes on, and what it makes is the same, byte for byte (experiments/data.md).
"""

from pathlib import Path
from typing import Literal

from vitlab.command import command
from vitlab.schema import Node


@command("prepare")
def main(
    *,
    to: Literal["litdata", "webdataset", "folder"],
    size: int | None,
    quality: int | None,
    out: str | None,
    shard_images: int,
    shuffle: bool,
    seed: int,
    processes: int | None,
    verify: str | None,
    index: str | None,
    data_dir: str,
    image_size: int,
    batch_size: int,
    run_dir: str,
    data: Node,
) -> Node:
    from vitlab import build
    from vitlab.data import indexing, packing
    from vitlab.identity import data_name

    if verify is not None:
        return indexing.verify(Path(verify))
    if index is not None:
        return indexing.index(Path(index))
    assert out is not None
    datamodule = build.make(data)
    return packing.pack(
        datamodule.load_source(),
        packing.Settings(to, size, quality, shard_images, shuffle, seed),
        Path(out),
        name=data_name(data["source"]),
        on_error=datamodule.on_error,
        max_skipped=datamodule.max_skipped,
        processes=processes,
    )


if __name__ == "__main__":
    main()
