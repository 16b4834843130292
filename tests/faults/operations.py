"""Kills at chosen file operations: before the n-th open, write, flush, link, rename, removal, or within a write."""

import builtins
import io
import os
import re
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

EVENTS = {"open": 0, "os.rename": 1, "os.link": 1, "os.remove": 0, "os.mkdir": 0}  # which argument is the file
Operation = tuple[str, str]  # open, write, flush, ..., and the file with N for its numbers


class Operations:
    """Records what this process and its forks do to files below `folder`, and kills them at an operation.

    torch writes checkpoints in C++: there the kill comes after `most` bytes of a file.
    """

    def __init__(self, folder: Path, record: Path, at: tuple[Operation, int] | None = None, *, within: bool = False):
        self.folder, self.at, self.within = f"{folder.resolve()}/", at, within
        self.file, self.record = record, os.open(record, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def install(self) -> None:
        real_open, real_fsync, real_save = io.open, os.fsync, torch.save
        operations = self

        class CountedFile(io.FileIO):
            def write(self, data: Any) -> int:
                operations.count(
                    "write", self.name, lambda: super(CountedFile, self).write(bytes(data)[: len(data) // 2])
                )
                return super().write(data)

        def open_file(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wax+") or "opener" in kwargs or not operations.concerns(file):
                return real_open(file, mode, buffering, *args, **kwargs)
            raw = CountedFile(file, mode.translate({ord("b"): "", ord("t"): ""}))
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            if "b" in mode:
                return buffered
            return io.TextIOWrapper(buffered, *args, **{"line_buffering": buffering == 1, **kwargs})

        def fsync(descriptor: Any) -> None:
            operations.count("flush", Path(f"/proc/self/fd/{int(descriptor)}").resolve())
            real_fsync(descriptor)

        def save(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            operations.count("save", file, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)), ends=False)
            real_save(content, file, *args, **kwargs)

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            if event in EVENTS and (event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
                operations.count(event.removeprefix("os."), arguments[EVENTS[event]])

        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        builtins.open, io.open, os.fsync, torch.save = open_file, open_file, fsync, save  # type: ignore[assignment]
        sys.addaudithook(audit)

    def concerns(self, file: Any) -> bool:
        return isinstance(file, str | os.PathLike) and os.path.abspath(os.fspath(file)).startswith(self.folder)  # noqa: PTH100

    def count(self, kind: str, file: Any, part: Callable[[], Any] | None = None, *, ends: bool = True) -> None:
        """Count an operation before it is done, and kill at the chosen one, after a part of it if `within`."""
        if not self.concerns(file):
            return
        name = re.sub(r"\d+", "N", os.path.abspath(os.fspath(file)).removeprefix(self.folder))  # noqa: PTH100
        operation = (kind, re.sub(r"N-N-N_N-N-N", "STAMP", name))
        os.write(self.record, f"{kind}\t{operation[1]}\n".encode())
        if self.at and self.at == (operation, read_operations(self.file)[operation]):  # of all processes
            if self.within and part:
                part()
            if ends or not self.within:
                os.kill(os.getpid(), signal.SIGKILL)


def read_operations(record: Path) -> Counter[Operation]:
    """How often each operation was done."""
    return Counter((kind, file) for kind, _, file in (line.partition("\t") for line in record.read_text().splitlines()))
