"""`metrics.csv`: every logged number, also across resumed runs."""

import csv
import os
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class MetricsFile(Logger):
    """`metrics.csv`: a row for each time something was logged, in the order of steps, an empty cell for what wasn't.

    Lightning's CSVLogger deletes the file of a run that is resumed. This one keeps it, and `rewind` takes back
    the rows of steps that will be made again, so that no row stands twice.
    """

    def __init__(self, *, folder: str) -> None:
        super().__init__()
        self.file = Path(folder) / "metrics.csv"
        self.columns, self.rows = ["step"], list[dict[str, Any]]()
        if self.file.exists():
            with self.file.open(newline="") as lines:
                reader = csv.DictReader(lines)
                self.rows = [row for row in reader if None not in row.values()]  # a kill may cut the last one short
                self.columns = list(reader.fieldnames or self.columns)

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends a row. A name seen for the first time makes a column: the file is then written anew."""
        row = {"step": step, **{k: float(v) for k, v in metrics.items()}}
        self.rows.append(row)
        if new := [k for k in row if k not in self.columns]:
            self.columns += new
        try:
            if new or not self.file.exists():
                self._write_all()
            else:
                with self.file.open("a", newline="") as lines:
                    csv.DictWriter(lines, self.columns).writerow(row)
        except OSError as error:
            free = shutil.disk_usage(self.file.parent).free / 2**20
            raise OSError(f"{self.file} can't be written ({error}); {free:,.0f} MiB are free there") from error

    @rank_zero_only
    def rewind(self, step: int, rows: int | None = None) -> None:
        """Drops the rows after `step`, and those after the first `rows`: what a checkpoint doesn't know of."""
        kept = [row for row in self.rows[:rows] if int(row["step"]) <= step]
        self.rows = kept
        if self.file.exists():
            self._write_all()

    @rank_zero_only
    def save(self) -> None:
        """Waits until the rows so far are on the disk."""
        if self.file.exists():
            with self.file.open("rb") as lines:
                os.fsync(lines.fileno())

    def _write_all(self) -> None:
        temporary = self.file.with_suffix(".tmp")
        with temporary.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        temporary.replace(self.file)
