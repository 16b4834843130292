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

    fold, overwrite = bool(read("fold", bool)), bool(read("overwrite", bool))
    source: dict[str, Any] = {"run": Path(run), "checkpoint": checkpoint, "part": read("part", str)}
    yield from export.problems(name=name, fold=fold, out=Path(out), overwrite=overwrite, **source)
