"""Write an export's files, and a folder that appears only when it is complete."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from vitlab.storage.atomic import fsync

RECORD = "export.json"  # identifies an export


def write_text(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    fsync(file)


def write_json(file: Path, content: Any) -> None:
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_tensors(file: Path, state: dict[str, Tensor]) -> None:
    """Write a safetensors file."""
    from safetensors.torch import save_file

    file.touch()
    mode = file.stat().st_mode  # as the umask allows; save_file makes files that only their owner can read
    save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, file, metadata={"format": "pt"})
    file.chmod(mode)
    fsync(file)


def folder_problem(out: Path, overwrite: bool) -> str | None:
    """Why `out` can't be written; None if it can. Only an export is ever overwritten."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / RECORD).is_file():
        return f"out={out} exists and is not an export (it has no {RECORD}); name another folder"
    return None if overwrite else f"out={out} has an export; overwrite=true replaces it, or name another folder"


@contextmanager
def atomic_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` when the block ends, and is removed when the block fails.

    A former `out` is removed last. Raises `FileExistsError` if it may not be overwritten.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary, former = (out.with_name(f".{out.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        fsync(temporary)
        if reason := folder_problem(out, overwrite):  # again: the block may have taken long
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
