"""`metrics.csv`: every logged number of a run, also of a resumed one.

step   optimizer steps done
epoch  of these steps, counted from 1 (before version 0.1 from 0: such a file is converted when its run is resumed)
"""

import csv
import shutil
from argparse import Namespace
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from vitlab.runs.folder import log, read_metrics
from vitlab.storage.atomic import atomic_path, fsync


class MetricsFile(Logger):
    """Writes a row for each call of `log_metrics`, in the order of steps, with empty cells for other names.

    Lightning's CSVLogger keeps all rows in memory, and deletes the file of a resumed run. This one copies the file row
    by row: `rewind` drops those of the steps that will be repeated.
    """

    def __init__(self, *, folder: str) -> None:
        super().__init__()
        self.file = Path(folder) / "metrics.csv"
        self.columns, self.count = ["step"], 0  # rows in the file
        for row in filter(None, self.read_rows()):
            self.columns, self.count = list(row), self.count + 1

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` holds them."""

    def read_rows(self) -> Iterator[dict[str, Any]]:
        """Read the file's rows; damaged ones, and one that a kill has cut short, are empty."""
        first = None
        for row in read_metrics(self.file) if self.file.exists() else ():
            if epoch := row.get("epoch"):
                first = float(epoch) if first is None else first
                row = {**row, "epoch": str(float(epoch) + 1)} if first == 0 else row
            yield row if row.get("step", "").isdecimal() else {}

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row. A new name adds a column: the file is then rewritten."""
        row = {"step": step, **{k: float(v) for k, v in metrics.items()}}
        new = [k for k in row if k not in self.columns]
        self.columns += new
        try:
            if new or not self.file.exists():
                with atomic_path(self.file) as temporary:
                    self._write(temporary, chain(self.read_rows(), [row]))
            else:
                with self.file.open("a", newline="") as lines:
                    csv.DictWriter(lines, self.columns).writerow(row)
                self.count += 1
        except OSError as error:
            free = shutil.disk_usage(self.file.parent).free / 2**20
            raise OSError(f"{self.file} can't be written ({error}); {free:,.0f} MiB are free there") from error

    @rank_zero_only
    def rewind(self, step: int, rows: int | None = None) -> None:
        """Drop the rows after `step`, and those after the first `rows`, which a checkpoint doesn't count.

        Fewer rows are reported, and the damaged file is kept as `metrics.csv.damaged`.
        """
        if not self.file.exists():
            self.report_lost_rows(step, rows)
            return
        with atomic_path(self.file) as temporary:
            first = filter(None, islice(self.read_rows(), rows))
            self._write(temporary, (row for row in first if int(row["step"]) <= step))
            self.report_lost_rows(step, rows)

    def report_lost_rows(self, step: int, rows: int | None) -> None:
        if rows is not None and self.count < rows:
            lost = f"{rows - self.count} of the {rows} rows before step {step} are lost"
            if self.file.exists():
                shutil.copyfile(self.file, kept := self.file.with_name(f"{self.file.name}.damaged"))
                lost += f"; the file is kept as {kept.name}"
            log.warning("%s is shorter than its checkpoint says: %s", self.file, lost)

    @rank_zero_only
    def save(self) -> None:
        """Wait until the rows are on the disk."""
        if self.file.exists():
            fsync(self.file)

    def _write(self, file: Path, rows: Iterable[dict[str, Any]]) -> None:
        self.count = 0
        with file.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, self.columns)
            writer.writeheader()
            for row in filter(None, rows):
                writer.writerow(row)
                self.count += 1
