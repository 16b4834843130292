"""Checkpoint files: written atomically, linked, and the newest intact one found."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from vitlab.storage.atomic import fsync
from vitlab.storage.safe_load import corruption, load_checkpoint

ORDER = ("last.ckpt", "previous.ckpt")  # of the equally new, which is taken first


# ------------------------------------------------------------------------------------------------------- on the disk


class AtomicFiles(TorchCheckpointIO):
    """Writes to a temporary name, flushes to the disk, renames: a kill at any moment leaves the former file whole.

    What was `last.ckpt` becomes `previous.ckpt`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises `OSError` naming the file and the disk's free space where it can't be written."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.tmp")
        try:
            torch.save(checkpoint, temporary)
            fsync(temporary)
            if file.name == ORDER[0] and file.exists():
                hardlink(file, ORDER[1])  # only now: while the new one is written, the two before are there
            temporary.replace(file)
            fsync(file.parent)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where the disk is full
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            free = shutil.disk_usage(file.parent).free / 2**20
            raise OSError(
                f"{file} can't be written ({error}); {free:,.0f} MiB are free there. The checkpoint before is whole: "
                f"make room, and resume=auto goes on from it"
            ) from error


def newest_checkpoint(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest whole checkpoint in a folder, by steps trained; and what is wrong with newer ones.

    Damaged files whose step can't be read count as newer.
    """
    files = [file for file in folder.glob("*.ckpt") if not file.name.startswith(".")]
    damaged = {file: problem for file in files if file.name == ORDER[0] and (problem := corruption(file))}
    steps: dict[Path, int] = {}
    for file in files:
        try:
            steps[file] = int(load_checkpoint(file)["global_step"])
        except (PermissionError, MemoryError):
            raise
        except Exception as error:  # the record of steps itself is broken
            damaged.setdefault(file, f"{type(error).__name__}: {error}")

    def rank(file: Path) -> tuple[int, int]:
        return steps[file], -(ORDER.index(file.name) if file.name in ORDER else len(ORDER))

    for file in sorted((f for f in steps if f not in damaged), key=rank, reverse=True):
        if problem := corruption(file):
            damaged[file] = problem
        else:
            return file, damaged
    return None, damaged


def hardlink(file: Path, name: str) -> None:
    """Gives a file a second name in its folder, in the place of what had it before."""
    temporary = file.with_name(f".{name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(file, temporary)
    except OSError:  # a file system without links
        shutil.copyfile(file, temporary)
        fsync(temporary)
    temporary.replace(file.with_name(name))
