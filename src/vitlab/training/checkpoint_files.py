"""Checkpoint files: atomic writes, hardlinks, and the newest intact file of a folder."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from vitlab.storage.atomic import atomic_path, fsync
from vitlab.storage.safe_load import corruption, load_checkpoint

ORDER = ("last.ckpt", "previous.ckpt")  # of equally new files, the first is taken


class AtomicFiles(TorchCheckpointIO):
    """Write checkpoints that a kill at any moment leaves intact, and rename `last.ckpt` to `previous.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises `OSError` with the file's name and the free disk space if it can't be written."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_path(file, suffix="tmp") as temporary:
                torch.save(checkpoint, temporary)
                fsync(temporary)
                if file.name == ORDER[0] and file.exists():
                    hardlink(file, ORDER[1])  # after the new one is complete
            fsync(file.parent)
        except (OSError, RuntimeError) as error:  # RuntimeError is torch's for a full disk
            free = shutil.disk_usage(file.parent).free / 2**20
            remedy = "The previous checkpoint is intact: make room, and resume with resume=auto"
            raise OSError(f"{file} can't be written ({error}); {free:,.0f} MiB are free there. {remedy}") from error


def newest_checkpoint(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest intact checkpoint in a folder, by its steps, and the problems of newer ones or those without steps."""
    files = [file for file in folder.glob("*.ckpt") if not file.name.startswith(".")]
    damaged = {file: problem for file in files if file.name == ORDER[0] and (problem := corruption(file))}
    steps: dict[Path, int] = {}
    for file in files:
        try:
            steps[file] = int(load_checkpoint(file)["global_step"])
        except (PermissionError, MemoryError):
            raise
        except Exception as error:  # damage raises any error
            damaged.setdefault(file, f"{type(error).__name__}: {error}")
    intact = steps.keys() - damaged.keys()
    for file in sorted(intact, key=lambda file: (steps[file], *(file.name == name for name in ORDER)), reverse=True):
        if problem := corruption(file):
            damaged[file] = problem
        else:
            return file, damaged
    return None, damaged


def hardlink(file: Path, name: str) -> None:
    """Give a file a second name in its folder, replacing the file of that name."""
    with atomic_path(file.with_name(name), suffix="tmp") as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(file, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(file, temporary)
