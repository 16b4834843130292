"""Write files and tables atomically; hash them."""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vitlab.config.printable import table_cell


def fsync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(file: Path, *, suffix: str | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `file` when the block ends, and is removed when the block fails.

    A reader, or a kill, sees the old content or the new one, never half of it. The name ends with `suffix`, or the
    process's id; with a fixed one, the next writer overwrites what a killed one has left.
    """
    temporary = file.with_name(f".{file.name}.{suffix or os.getpid()}")
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def atomic_write(file: Path, content: str | bytes) -> None:
    with atomic_path(file) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def file_sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_csv(file: Path, lines: Iterable[Sequence[object]]) -> None:
    """Write a table that spreadsheets can open; texts are made printable and no formulas, None is an empty cell."""
    text = io.StringIO(newline="")
    cells = ([table_cell(cell) if isinstance(cell, str) else cell for cell in line] for line in lines)
    csv.writer(text, lineterminator="\n").writerows(cells)
    atomic_write(file, text.getvalue())
