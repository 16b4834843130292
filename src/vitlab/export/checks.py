"""Check the settings of an export."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitlab.config.view import ConfigView


def export_problems(read: ConfigView) -> Iterator[str]:
    name, run, checkpoint, out = (read(key, str) for key in ("format", "run", "checkpoint", "out"))
    if name is None or run is None or checkpoint is None or out is None:
        return
    from vitlab.export import export

    part, fold = read("part", str), bool(read("fold", bool))
    known: Any = {"part": part, "name": name, "fold": fold, "channels": read("channels", int), "out": Path(out)}
    yield from export.problems(run=Path(run), checkpoint=checkpoint, **known)
