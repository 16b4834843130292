"""Tables as CSV files that spreadsheets can open."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from vitlab.config.printable import table_cell
from vitlab.storage import atomic


def write_csv(file: Path, lines: Iterable[Sequence[object]]) -> None:
    """Write lines; texts are made printable and no formulas, None is an empty cell."""
    text = io.StringIO(newline="")
    cells = ([table_cell(cell) if isinstance(cell, str) else cell for cell in line] for line in lines)
    csv.writer(text, lineterminator="\n").writerows(cells)
    atomic.atomic_write(file, text.getvalue())
