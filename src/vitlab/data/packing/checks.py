"""Check the settings of `src/prepare.py`."""

from collections.abc import Iterator
from pathlib import Path

from vitlab.config.view import ConfigView
from vitlab.runs.folder import write_problem
from vitlab.storage.remote import Storage, is_remote


def problems(view: ConfigView) -> Iterator[str]:
    """Problems of the settings of packing or verifying."""
    if not {"action", "shard_images"} <= view.config.keys():
        return
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
