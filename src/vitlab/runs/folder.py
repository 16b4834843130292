"""The run folder: its files, its configuration and its results.

config.yaml      the resolved configuration: enough to repeat the run
results.json     status, scores, counts, seconds, provenance
train.log        the log
metrics.csv      every logged number                (vitlab.runs.metrics_file)
skipped.csv      bad images that were skipped       (vitlab.data.scan)
checkpoints/     best, last, the one before         (vitlab.training.checkpoints)
figures/         curves.png                         (vitlab.runs.plots)
.hydra/          the overrides of the configuration
"""

import json
import logging
import tempfile
from contextlib import suppress
from pathlib import Path

import yaml

from vitlab.config import renamed
from vitlab.config.schema import Node
from vitlab.storage.atomic import atomic_write
from vitlab.storage.yaml_files import UnreadableYaml, read_yaml

CONFIG, RESULTS, OVERRIDES = "config.yaml", "results.json", ".hydra/overrides.yaml"

log = logging.getLogger(__name__)


def write_config(run_dir: Path, config: Node) -> None:
    """Write the resolved configuration; only one rank may call it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    atomic_write(run_dir / CONFIG, yaml.safe_dump(config, sort_keys=False))


def read_config(run_dir: Path) -> Node:
    """The resolved configuration of a run. Raises `FileNotFoundError` for a folder that is no run.

    Raises `UnreadableYaml` for a file that isn't one of a run.
    """
    file = run_dir / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"run={run_dir} is not a run folder: it has no {CONFIG}")
    config = read_yaml(file)
    if not isinstance(config, dict):
        raise UnreadableYaml(f"{file.name} is not a mapping")
    return renamed.current_config(config)


def data_without_scan(data: Node, run_dir: Path) -> Node:
    """The node `data` of a run, with the bad images that its training has listed instead of a scan."""
    settings = {"scan": "none", "skipped_file": str(run_dir / "skipped.csv")}
    return {**data, **{key: value for key, value in settings.items() if key in data}}


def checkpoint_file(run_dir: Path, name: str) -> Path:
    return run_dir / "checkpoints" / f"{name}.ckpt"


def read_results(run_dir: Path) -> Node:
    """The content of `results.json`; empty if the file is missing or incomplete."""
    with suppress(FileNotFoundError, json.JSONDecodeError):
        results = json.loads((run_dir / RESULTS).read_text())
        assert isinstance(results, dict)
        return results
    return {}


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
    """The run folders in a folder, at most three levels below it, the newest last."""
    files = [file for level in ("*", "*/*", "*/*/*") for file in folder.glob(f"{level}/{CONFIG}")]
    return [file.parent for file in sorted(files, key=lambda file: file.stat().st_mtime)]


def newest_run(folder: Path) -> Path | None:
    """The run that was started last; None if there is none."""
    runs = list_runs(folder)
    return runs[-1] if runs else None


def find_run_dir(path: Path) -> Path | None:
    """The run folder of a path: the path, its parent or grandparent."""
    for folder in (path, path.parent, path.parent.parent):
        if (folder / CONFIG).is_file():
            return folder.resolve()
    return None
