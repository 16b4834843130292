"""The run folder: its files, its configuration and its results.

config.yaml      the resolved configuration: enough to repeat the run
results.json     status, scores, counts, seconds, provenance
train.log        the log
metrics.csv      every logged number                (vitlab.runs.metrics_file)
skipped.csv      bad images that were skipped       (vitlab.data.scan)
checkpoints/     best, last, the one before         (vitlab.training.checkpoints)
figures/         curves.png, attention.png          (vitlab.runs.plots)
evaluation/      judgements of its predictions      (vitlab.evaluation.judgement)
report/          index.html, a page of all of it    (vitlab.evaluation.run_report)
.hydra/          the overrides of the configuration
"""

import csv
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from vitlab.config import renamed
from vitlab.config.allowlist import MOST_VALUES
from vitlab.config.schema import Node
from vitlab.storage.atomic import atomic_write

CONFIG, RESULTS, OVERRIDES = "config.yaml", "results.json", ".hydra/overrides.yaml"
MARK = "# a record: a resumed run takes changed settings from the command line, not from here; checksum "
MOST_BYTES = 10_000_000  # of a YAML file

log = logging.getLogger(__name__)


def write_config(run_dir: Path, config: Node) -> None:
    """Write the resolved configuration; only one rank may call it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config, sort_keys=False)
    atomic_write(run_dir / CONFIG, f"{first_line(text)}\n{text}")


def first_line(text: str) -> str:
    return f"{MARK}{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def is_edited(run_dir: Path) -> bool:
    """Whether `config.yaml` was changed since the run wrote it. Earlier versions left no mark."""
    line, _, text = (run_dir / CONFIG).read_text(errors="replace").partition("\n")
    return line.startswith(MARK) and line != first_line(text)


class UnreadableRun(ValueError):
    """A file of a run is damaged, or has more values than a run's."""


if yaml.__with_libyaml__:
    from yaml._yaml import CParser

    class Loader(Composer, CParser, SafeConstructor, Resolver):
        """libyaml's parser, six times as fast, with Python's composer: libyaml's overflows the stack of a deep file."""

        def __init__(self, text: str) -> None:
            CParser.__init__(self, text)
            Composer.__init__(self)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)

else:
    Loader = yaml.SafeLoader  # type: ignore[misc,assignment]


def read_yaml(file: Path) -> Any:
    """The content of a YAML file, which somebody else may have written. Raises `UnreadableRun`, and `OSError`.

    Aliases count as often as they are used: a few lines of them can stand for more values than a memory holds.
    """
    try:
        if (size := file.stat().st_size) > MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes; a run's has fewer than {MOST_BYTES:,}")
        loader = Loader(file.read_text(encoding="utf-8"))
        if (node := loader.get_single_node()) is None:
            return None
        if count_values(node, {}) > MOST_VALUES:
            raise ValueError(f"it has more than {MOST_VALUES:,} values, as its aliases repeat others")
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # of encodings, dates and numbers too
        raise UnreadableRun(f"{file} is damaged ({' '.join(str(error).split())})") from error


def count_values(node: yaml.Node, known: dict[int, float]) -> float:
    """The values of a node, with each alias counted again; infinitely many where it contains itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # until it is counted
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        is_leaf = isinstance(node, yaml.ScalarNode)
        known[id(node)] = 1 if is_leaf else 1 + sum(count_values(part, known) for part in inner)
    return known[id(node)]


def read_overrides(run_dir: Path) -> list[str]:
    """The command line's overrides of a run; none if they weren't saved. Raises `UnreadableRun`."""
    file = run_dir / OVERRIDES
    lines = read_yaml(file) if file.is_file() else []
    is_cut = bool(lines) and not file.read_bytes().endswith(b"\n")  # and may mean something else
    if is_cut or not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UnreadableRun(f"{file} is damaged (it has no {'end' if is_cut else 'list of overrides'})")
    return lines


def read_config(run_dir: Path) -> Node:
    """The resolved configuration of a run. Raises `FileNotFoundError` for a folder that is no run, `UnreadableRun`."""
    file = run_dir / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"run={run_dir} is not a run folder: it has no {CONFIG}")
    config = read_yaml(file)
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise UnreadableRun(f"{file} is damaged (it has no settings)")
    return renamed.current_config(config)


def data_without_scan(data: Node, run_dir: Path) -> Node:
    """The node `data` of a run, with the bad images that its training has listed instead of a scan."""
    settings = {"scan": "none", "skipped_file": str(run_dir / "skipped.csv")}
    return {**data, **{key: value for key, value in settings.items() if key in data}}


def checkpoint_file(run_dir: Path, name: str) -> Path:
    return run_dir / "checkpoints" / f"{name}.ckpt"


def read_results(run_dir: Path) -> Node:
    """The content of `results.json`, empty if the file is missing; of a damaged one a status `unreadable` with the
    reason as `error`.
    """
    try:
        results = json.loads((run_dir / RESULTS).read_text())
        if isinstance(results, dict) and isinstance(results.get("status", ""), str):
            return results
        reason = "it has no results"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
    return {"status": "unreadable", "error": f"{RESULTS} is damaged ({reason})"}


def read_metrics(file: Path) -> Iterator[dict[str, str]]:
    """Read the rows of a `metrics.csv`, if any, one by one; those that aren't numbers, after damage, are empty.

    A last line without its end is left out: a number may be cut short in it.
    """
    with suppress(OSError), file.open(newline="", errors="replace") as lines:
        rows = csv.DictReader(line for line in lines if line.endswith("\n"))
        try:
            for row in rows:
                yield row if is_numeric(row) else {}
        except csv.Error as error:  # a field without end
            log.warning("%s is damaged (%s) after line %d", file, error, rows.line_num)


def is_numeric(row: dict[str, str]) -> bool:
    """Whether each column of a row has a number or an empty cell."""
    try:
        return None not in row and all(cell == "" or isinstance(float(cell), float) for cell in row.values())
    except (TypeError, ValueError):  # float(None): a cell is missing
        return False


def write_problem(setting: str, run_dir: Path) -> str | None:
    """Why files can't be written to a folder that may not exist yet; None if they can. Leaves no files."""
    try:
        existing = next(folder for folder in (run_dir, *run_dir.parents) if folder.exists())
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return f"{setting}={run_dir} can't be written to ({reason}); name another folder"
    return None


def list_runs(folder: Path) -> list[Path]:
    """The runs with checkpoints in a folder, at most three levels below it, the newest last."""
    files = [file for level in ("*", "*/*", "*/*/*") for file in folder.glob(f"{level}/{CONFIG}")]
    runs = [file for file in files if (file.parent / "checkpoints").is_dir()]
    return [file.parent for file in sorted(runs, key=lambda file: file.stat().st_mtime)]


def find_run_dir(path: Path) -> Path | None:
    """The run folder of a path: the path, its parent or grandparent."""
    return next((folder.resolve() for folder in (path, *path.parents[:2]) if (folder / CONFIG).is_file()), None)
