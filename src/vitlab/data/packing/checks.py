"""The rules of `src/prepare.py`'s settings."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from vitlab.config.schema import format_value
from vitlab.config.view import ConfigView
from vitlab.runs.folder import write_problem
from vitlab.storage.remote import is_remote

CONF = Path(__file__).resolve().parents[4] / "conf" / "prepare.yaml"


def problems(read: ConfigView) -> Iterator[str]:
    """What is wrong with the settings of packing, verifying or indexing, before anything is read."""
    if not {"action", "shard_images"} <= read.config.keys():
        return
    if (processes := read("processes", int)) is not None and processes < 0:
        yield f"processes={processes} must be at least 0"
    action = read("action", str)
    if action in ("verify", "index"):
        usual = yaml.safe_load(CONF.read_text())
        for key in ("out", "size", "quality", "shard_images", "shuffle", "seed"):
            if (value := read.config.get(key, usual[key])) != usual[key]:
                yield f"{key}={format_value(value)} is a setting of packing, and {action} packs nothing; leave it out"
        if (folder := read("data_dir", str)) is not None:
            yield from folder_problems(folder, action)
        return
    for key in ("size", "shard_images"):
        if (value := read(key, int)) is not None and value < 1:
            yield f"{key}={value} must be at least 1"
    if (quality := read("quality", int)) is not None and not 1 <= quality <= 100:
        yield f"quality={quality} must lie in 1 .. 100, or be null for PNG"
    if read.config.get("out") is None:
        yield "out is not set; name the folder to pack into: out=FOLDER"
    elif (out := read("out", str)) is not None:
        from vitlab.data.packing.pack import folder_problem

        if (problem := folder_problem(Path(out)) or write_problem("out", Path(out).absolute())) is not None:
            yield problem


def folder_problems(folder: str, action: str) -> Iterator[str]:
    """Why a folder can't be verified or indexed."""
    from vitlab.data.packing import manifest, verify
    from vitlab.storage.remote import Storage

    if is_remote(folder):
        yield f"data_dir={folder}: {action} reads a folder of this machine; {action} the set before it is uploaded"
    elif action == "index" and not Path(folder).is_dir():
        yield f"data_dir={folder} is no folder; name the one of the tar files"
    elif action == "index" and (Path(folder) / manifest.NAME).is_file():
        yield f"data_dir={folder} has an index already ({manifest.NAME}); remove that file to index it again"
    else:
        try:
            if action == "verify":
                manifest.read_manifest(Storage(folder))
            elif not verify.split_files(Path(folder)):
                yield (
                    f"data_dir={folder} has no tar files of a train split; expected train/*.tar or ...-train-...tar "
                    f"there, with images next to numbers of classes (.cls)"
                )
        except manifest.NotShardedData as error:
            yield str(error)
