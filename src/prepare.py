"""Pack a data set into shards, once, so that training reads few large files instead of a million small ones.

    python src/prepare.py data=image_folder data_dir=imagenet size=256 out=imagenet-256
    python src/train.py data=shards data_dir=imagenet-256
    python src/prepare.py verify data_dir=imagenet-256        compare every checksum

If it is killed, the same command resumes and writes the same bytes (docs/large_data.md).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Le

from vitlab.cli.command import command
from vitlab.config.bounds import NonNegativeInt, PositiveInt
from vitlab.config.schema import ConfigView, Node
from vitlab.runs.folder import write_problem
from vitlab.storage.remote import Storage, is_remote


def problems(view: ConfigView) -> Iterator[str]:
    """Problems of the settings of packing or verifying."""
    from vitlab.data.packing import manifest, pack

    action, out, folder = (view(key, str) for key in ("action", "out", "data_dir"))
    if action == "verify":
        if out is not None:
            yield f"out={out} is where images are packed, and verify packs none; leave it out"
        if folder is not None and is_remote(folder):
            yield f"data_dir={folder}: verify reads a folder of this machine; do it before the set is uploaded"
        elif folder is not None:
            try:
                manifest.read_manifest(Storage(folder))
            except manifest.NotShardedData as error:
                yield str(error)
    elif view.config.get("out") is None:
        yield "out is not set; name the folder to pack into: out=FOLDER"
    elif out is not None and (problem := pack.folder_problem(Path(out)) or write_problem("out", Path(out).absolute())):
        yield problem


@command("prepare", check=problems)
def main(
    *,
    action: Literal["pack", "verify"],
    size: PositiveInt | None,
    quality: Annotated[PositiveInt, Le(100), "null is PNG"] | None,
    out: str | None,
    shard_images: PositiveInt,
    shuffle: bool,
    seed: int,
    processes: NonNegativeInt | None,
    data_dir: str,
    image_size: int,
    batch_size: int,
    run_dir: str,
    data: Node,
) -> Node:
    """Pack or verify shards.

    Args:
        action: `pack` a data set, or `verify` the checksums of `data_dir`.
        size: Pixels of the shorter side of a packed image. None: files keep their own bytes.
        quality: JPEG quality of images that are encoded again. None: PNG.
        out: Folder of the packed set, complete once it has prepared.json.
        shard_images: Images of a shard, at most.
        shuffle: Shuffle the train split, once. Shards of one class each would be shuffled badly in training.
        seed: Seed of that order.
        processes: Processes that read and encode. None: one for each core; 0: the program itself.
        data_dir: Folder of the images; for `verify` of a packed set.
        image_size: Height and width of the images of `data=fake`.
        batch_size: Unused; the group `data` refers to it.
        run_dir: Folder of the log. Set by the program.
        data: The data set.
    """
    from vitlab.config import instantiate
    from vitlab.data.packing import pack
    from vitlab.data.packing.shard_writer import Settings
    from vitlab.jobs.identity import data_name

    if action == "verify":
        return pack.verify(Path(data_dir))
    assert out is not None
    datamodule = instantiate.build_object(data)
    return pack.pack(
        datamodule.load_source(),
        Settings(size, quality, shard_images, shuffle, seed),
        Path(out),
        name=data_name(data["source"]),
        on_error=datamodule.on_error,
        max_skipped=datamodule.max_skipped,
        processes=processes,
    )


if __name__ == "__main__":
    main()
