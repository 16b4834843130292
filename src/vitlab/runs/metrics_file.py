"""`metrics.csv`: every logged number of a run, also of a resumed one.

step   optimizer steps done
epoch  of these steps, counted from 1 (before version 0.1 from 0: such a file is converted when its run is resumed)
"""

import csv
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from vitlab.runs.folder import log, read_metrics
from vitlab.storage.atomic import atomic_path, fsync


class MetricsFile(Logger):
    """Writes a row for each call of `log_metrics`, in the order of steps, with empty cells for other names.

    Lightning's CSVLogger deletes the file of a resumed run. This one keeps it, and `rewind` drops the rows of the steps
    that will be repeated.
    """

    def __init__(self, *, folder: str) -> None:
        super().__init__()
        self.file = Path(folder) / "metrics.csv"
        self.columns, self.rows = ["step"], list[dict[str, Any]]()
        if self.file.exists():
            self.rows = [row if row.get("step", "").isdecimal() else {} for row in read_metrics(self.file)]
            while self.rows and not self.rows[-1]:  # a kill may cut the last one short
                self.rows.pop()
            self.columns = list(next(filter(None, self.rows), self.columns))
            epochs = [row for row in self.rows if row.get("epoch")]
            if epochs and float(epochs[0]["epoch"]) == 0:
                for row in epochs:
                    row["epoch"] = float(row["epoch"]) + 1

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
        """Append a row. A new name adds a column: the file is then rewritten."""
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
        """Drop the rows after `step`, and those after the first `rows`, which a checkpoint doesn't count.

        Fewer rows are reported, and the damaged file is kept as `metrics.csv.damaged`.
        """
        self.rows = [row for row in self.rows[:rows] if row and int(row["step"]) <= step]
        if rows is not None and len(self.rows) < rows:
            lost = f"{rows - len(self.rows)} of the {rows} rows before step {step} are lost"
            if self.file.exists():
                shutil.copyfile(self.file, kept := self.file.with_name(f"{self.file.name}.damaged"))
                lost += f"; the file is kept as {kept.name}"
            log.warning("%s is shorter than its checkpoint says: %s", self.file, lost)
        if self.file.exists():
            self._write_all()

    @rank_zero_only
    def save(self) -> None:
        """Wait until the rows are on the disk."""
        if self.file.exists():
            fsync(self.file)

    def _write_all(self) -> None:
        with atomic_path(self.file) as temporary, temporary.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
