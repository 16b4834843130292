"""Files that are whole on the disk, and a folder that comes into its place at once or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from vitlab.storage.atomic import fsync

RECORD = "export.json"  # what tells a folder of ours from any other


def write_text(file: Path, text: str) -> None:
    """Writes text."""
    file.write_text(text, encoding="utf-8")
    fsync(file)


def write_json(file: Path, content: Any) -> None:
    """Writes JSON for people to read, too."""
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_tensors(file: Path, state: dict[str, Tensor]) -> None:
    """Writes a safetensors file."""
    from safetensors.torch import save_file

    file.touch()
    mode = file.stat().st_mode  # what the umask allows; save_file leaves a file to its owner alone
    save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, file, metadata={"format": "pt"})
    file.chmod(mode)
    fsync(file)


def folder_problem(out: Path, overwrite: bool) -> str | None:
    """Why an export can't be put in a place; None if it can.

    What is overwritten must be an export: nothing else is ever removed.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / RECORD).is_file():
        return f"out={out} is there, and is no export (it has no {RECORD}); name another folder"
    return None if overwrite else f"out={out} holds an export; overwrite=true replaces it, or name another folder"


@contextmanager
def atomic_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """An empty folder to write in, which becomes `out` when the block ends; nothing is left of it if the block raises.

    What `out` was before is removed once the new one is there. Raises `FileExistsError` where that may not be.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary, former = (out.with_name(f".{out.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        fsync(temporary)
        if reason := folder_problem(out, overwrite):  # once more: the block may have taken long
            raise FileExistsError(reason)
        if out.exists():
            out.replace(former)
        try:
            temporary.replace(out)
        except OSError:
            if former.exists():
                former.replace(out)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync(out.parent)
    shutil.rmtree(former, ignore_errors=True)
