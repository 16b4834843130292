"""Write an export's files, and a folder that appears only when it is complete."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from vitlab.storage.atomic import fsync

RECORD, CARD = "export.json", "README.md"  # RECORD lists the other files of an export

log = logging.getLogger(__name__)


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


def exported_files(out: Path) -> set[str] | None:
    """The names of the files that an export wrote to `out`, by its own record; None if it has no such record."""
    try:
        hashes = json.loads((out / RECORD).read_bytes())["sha256"]
        return {RECORD, CARD, *hashes} if hashes and isinstance(hashes, dict) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def folder_problem(out: Path, overwrite: bool) -> str | None:
    """Why `out` can't be written; None if it can. Only an export is ever overwritten, and only its own files."""
    if out.is_symlink():
        return f"out={out} is a link; name the folder that it leads to, {out.resolve()}, or another one"
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if (written := exported_files(out)) is None:
        return f"out={out} exists and is not an export (it has no {RECORD} that lists its files); name another folder"
    if others := sorted(file.name for file in out.iterdir() if not is_own_file(file, written)):
        names = ", ".join(others[:3]) + ", ..." * (len(others) > 3)
        return f"out={out} has an export, and {names} of yours; move what is yours, or name another folder"
    return None if overwrite else f"out={out} has an export; overwrite=true replaces it, or name another folder"


def is_own_file(file: Path, written: set[str]) -> bool:
    return file.name in written and file.is_file() and not file.is_symlink()


@contextmanager
def atomic_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` when the block ends, and is removed when the block fails.

    The files of a former export in `out` are removed last. Raises `FileExistsError` if it may not be overwritten.
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
    if former.exists():
        remove_export(former)


def remove_export(folder: Path) -> None:
    """Remove the files that an export lists, and the folder unless it holds others."""
    written = exported_files(folder) or set()
    try:
        for file in [file for file in folder.iterdir() if is_own_file(file, written)]:
            file.unlink()
        folder.rmdir()
    except OSError as error:
        log.warning("%s, the former export, isn't removed (%s)", folder, error)
