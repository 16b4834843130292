"""Load pickled files without running code."""

import errno
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vitlab.config import renamed
from vitlab.config.allowlist import MOST_VALUES, NotTrusted, has_too_many_values


@contextmanager
def explain_unsafe_pickle(file: Path, remedy: str = "use a checkpoint that vitlab saved") -> Iterator[None]:
    """Replace torch's refusal of a file, which suggests to run its code, by a line with the remedy."""
    try:
        yield
    except (pickle.UnpicklingError, RuntimeError) as error:
        if "weights_only" not in str(error):
            raise
        name = re.search(r"(?:GLOBAL|global) (\S+)", str(error))
        reason = f"it holds more than weights and plain data{f' ({name[1]})' if name else ''}"
        raise NotTrusted(f"{file} is refused: {reason}, and loading that could run code; {remedy}") from error


def corruption(file: Path) -> str | None:
    """The damage of a checkpoint's file, by its records' checksums (CRC-32), or None."""
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (PermissionError, MemoryError):
        raise  # unrelated to the bytes
    except Exception as error:  # damaged bytes raise many kinds
        if getattr(error, "errno", None) in (errno.EIO, errno.ESTALE):
            raise
        return f"{type(error).__name__}: {error}"
    return f"the checksum of its record {bad} is wrong" if bad else None


def verify_checkpoint(file: Path) -> None:
    """Raise `OSError` for a damaged file. torch verifies no checksums."""
    if problem := corruption(file):
        raise OSError(
            f"{file} is damaged ({problem}): its weights have changed since they were saved; use another checkpoint"
        )


def load_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint's content; tensors are read from the file on first use. Raises `allowlist.NotTrusted`."""
    with explain_unsafe_pickle(file):
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if isinstance(identity := content.get("vitlab"), dict) and isinstance(identity.get("config"), dict):
        if has_too_many_values(identity["config"]):
            raise NotTrusted(f"{file} is refused: its configuration has more than {MOST_VALUES:,} values")
        identity["config"] = renamed.current_config(identity["config"])
    return content
