"""Check the settings of an export."""

from collections.abc import Iterator
from pathlib import Path

from vitlab.config.view import ConfigView


def export_problems(read: ConfigView) -> Iterator[str]:
    name, run, checkpoint, out = (read(key, str) for key in ("format", "run", "checkpoint", "out"))
    if name is None or run is None or checkpoint is None or out is None:
        return
    from vitlab.export import export

    part, fold = read("part", str), bool(read("fold", bool))
    yield from export.problems(run=Path(run), checkpoint=checkpoint, part=part, name=name, fold=fold, out=Path(out))
