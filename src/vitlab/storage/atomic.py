"""Write files atomically; hash them."""

import hashlib
import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(file: Path, content: str | bytes) -> None:
    """Writes a file so that a reader, or a kill, sees the old content or the new one, never half of it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    if isinstance(content, str):
        temporary.write_text(content)
    else:
        temporary.write_bytes(content)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(file)


def file_sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
