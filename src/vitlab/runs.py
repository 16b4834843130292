"""The run folder: what a run is made from and what it leaves, and how one is found again.

config.yaml      the resolved configuration: the run can be made again from this file alone
results.json     status, scores, counts, seconds, provenance
train.log        everything logged
metrics.csv      every logged number          (vitlab.tracking)
skipped.csv      bad images left out, if any  (vitlab.data.scan)
checkpoints/     best.ckpt, last.ckpt         (Lightning's ModelCheckpoint)
figures/         curves.png                   (vitlab.callbacks)
.hydra/          what Hydra composed it from
"""

import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from vitlab.schema import Node

CONFIG, RESULTS, OVERRIDES = "config.yaml", "results.json", ".hydra/overrides.yaml"
LAST = "checkpoints/last.ckpt"

# Root keys that don't change what is trained: two runs that differ in these alone are the same run.
INCIDENTAL = ("run_dir", "resume", "logger", "name")

log = logging.getLogger(__name__)


def write_config(run_dir: Path, config: Node) -> None:
    """Writes the resolved configuration; only one rank may call it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    replace(run_dir / CONFIG, yaml.safe_dump(config, sort_keys=False))


def read_config(run_dir: Path) -> Node:
    """The resolved configuration of a run. Raises `FileNotFoundError` for a folder that is no run."""
    file = run_dir / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"run={run_dir} is not a run folder: it has no {CONFIG}")
    config = yaml.safe_load(file.read_text())
    assert isinstance(config, dict)
    return config


def checkpoint_file(run_dir: Path, name: str) -> Path:
    """Where a run keeps its checkpoint `best` or `last`."""
    return run_dir / "checkpoints" / f"{name}.ckpt"


def read_results(run_dir: Path) -> Node:
    """What `results.json` holds; empty where there is none yet."""
    with suppress(FileNotFoundError):
        results = json.loads((run_dir / RESULTS).read_text())
        assert isinstance(results, dict)
        return results
    return {}


def replace(file: Path, text: str) -> None:
    """Writes a file so that a reader, or a kill, sees the old text or the new one, never half of it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(file)


# -------------------------------------------------------------------------------------------------------- resume


def resumed_overrides(overrides: list[str], problems: list[str]) -> list[str]:
    """For `resume=FOLDER`: what that run was started with, less what `overrides` says anew."""
    given = {o.key_or_group: o for o in OverridesParser.create().parse_overrides(overrides)}
    if "resume" not in given or (target := str(given["resume"].value())) in ("auto", "None", "null"):
        return []
    run_dir = run_of(Path(target))
    if run_dir is None:
        problems.append(f"resume={target}: no run folder, nor a checkpoint in one; use resume=auto or a path")
        return []
    saved = yaml.safe_load((run_dir / OVERRIDES).read_text()) if (run_dir / OVERRIDES).is_file() else []
    parsed = OverridesParser.create().parse_overrides(saved)
    kept = [o.input_line or "" for o in parsed if o.key_or_group not in {*given, "resume"}]
    return [*kept, f"hydra.run.dir={quoted(run_dir)}"]


def resume_auto(config: Node, search: Path) -> list[str]:
    """For `resume=auto`: the newest unfinished run of the same configuration below `search`, as an override."""
    candidates = []
    for file in search.glob(f"*/{CONFIG}"):
        run_dir = file.parent
        same = settled(read_config(run_dir)) == settled(config)
        results = read_results(run_dir)
        stopped = results.get("status") != "finished" and not is_alive(results)
        if same and stopped and (run_dir / LAST).is_file():
            candidates.append(((run_dir / LAST).stat().st_mtime, run_dir))
    return [f"hydra.run.dir={quoted(max(candidates)[1])}"] if candidates else []


def settled(config: Node) -> Node:
    """The part of a configuration that decides what is trained."""
    kept = {k: v for k, v in config.items() if k not in INCIDENTAL}
    if isinstance(config.get("data"), dict):
        kept["data"] = {k: v for k, v in config["data"].items() if k != "skipped_file"}  # it lies in the run folder
    callbacks = {k: v for k, v in (config.get("callbacks") or {}).items() if k != "progress" and v}
    kept["callbacks"] = {k: {n: x for n, x in v.items() if n != "dirpath"} for k, v in callbacks.items()}
    return kept


def folder_problems(config: Node, run_dir: Path) -> list[str]:
    """Why a run of this configuration can't begin, or go on, in a folder: what is saved there must not be lost."""
    if "resume" not in config:
        return []
    resume, results = config["resume"], read_results(run_dir)
    if not (run_dir / LAST).is_file():
        missing = f"resume={resume}: {run_dir} has no {LAST} to go on from"
        return [] if resume in (None, "auto") or str(resume).endswith(".ckpt") else [missing]
    if resume is None:
        return [f"hydra.run.dir={run_dir} holds a run already: resume={run_dir} goes on with it; else name another"]
    if is_alive(results):
        return [f"resume={resume}: {run_dir} is being trained by process {results['process']} on this machine"]
    if results.get("status") == "finished" and settled(read_config(run_dir)) == settled(config):
        return [f"resume={resume}: {run_dir} is finished; raise trainer.max_epochs or trainer.max_steps to go on"]
    return []


def is_alive(results: Node) -> bool:
    """Whether the process that trains a run still lives; known on its own machine alone."""
    if results.get("status") != "running" or results.get("host") != platform.node():
        return False
    try:
        os.kill(int(results["process"]), 0)
    except (OSError, KeyError):
        return False
    return True


def changes(before: Node, after: Node, path: str = "") -> list[str]:
    """What differs between two configurations: `trainer.max_epochs: 3 -> 6`."""
    found = []
    for key in dict.fromkeys([*before, *after]):
        old, new, where = before.get(key), after.get(key), f"{path}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            found += changes(old, new, f"{where}.")
        elif old != new:
            found.append(f"{where}: {old} -> {new}")
    return found


def run_of(path: Path) -> Path | None:
    """The run folder that a path is or lies in."""
    for folder in (path, path.parent, path.parent.parent):
        if (folder / CONFIG).is_file():
            return folder.resolve()
    return None


def checkpoint_to_resume(resume: str | None, run_dir: Path) -> Path | None:
    """The checkpoint that a run goes on from: `resume` itself if it is one, else the folder's last, if any."""
    if resume is None:
        return None
    if resume.endswith(".ckpt"):
        return Path(resume)
    return run_dir / LAST if (run_dir / LAST).is_file() else None


def quoted(path: Path) -> str:
    """A path as a value in Hydra's override grammar."""
    return "'" + str(path).replace("'", "\\'") + "'"


# ------------------------------------------------------------------------------------------------- log and record


@contextmanager
def logging_to(file: Path, first_rank: bool) -> Iterator[None]:
    """Messages and warnings to the console and to `file`; from the ranks after the first, errors alone.

    Handlers that the root logger had before (Hydra's own) wait meanwhile, or every line would be told twice.
    """
    root, level = logging.getLogger(), logging.INFO if first_rank else logging.ERROR
    handlers: list[logging.Handler] = [CurrentStderr(), logging.FileHandler(file, delay=True)]
    handlers[0].setFormatter(MessageAlone("%(message)s"))
    handlers[1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for handler in handlers:
        handler.setLevel(level)
    former, root.handlers, level = root.handlers, handlers, root.level
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers = former
        root.setLevel(level)
        for handler in handlers:
            handler.close()


class MessageAlone(logging.Formatter):
    """Leaves tracebacks to the file: Python, or Hydra, prints them on the console itself."""

    def formatException(self, ei: Any) -> str:
        return ""


class CurrentStderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is now: a progress bar puts itself between, to stay below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


@contextmanager
def recorded(run_dir: Path, first_rank: bool) -> Iterator[Node]:
    """Keeps `results.json`: `running` until the block ends, then `finished`, or `crashed` with the error.

    The error is that of the rank that failed first: the launcher may end the others, rank 0 too, before they know.
    """
    start = time.time()
    record: Node = {"status": "running", **provenance(run_dir)}
    results: Node = {}

    def seconds() -> float:
        return round(time.time() - start, 2)

    def write(**more: Any) -> None:
        if first_rank:
            replace(run_dir / RESULTS, json.dumps({**record, **results, "seconds": seconds(), **more}, indent=2))

    write()
    try:
        yield results
    except BaseException as error:
        reason = told(error)
        record_crash(run_dir, reason, seconds=seconds())
        log.error(reason, exc_info=error)
        raise
    write(status="finished")


def told(error: BaseException) -> str:
    """An error in a line. Lightning turns signals into kinds of SystemExit."""
    if type(error).__name__ == "SIGTERMException":
        return "ended by SIGTERM"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    return f"{type(error).__name__}: {error}"


def record_crash(run_dir: Path, error: str, **more: Any) -> None:
    """Marks a run as crashed, unless that is already known: the first reason is the one that counts."""
    results = read_results(run_dir)
    if results.get("status") != "crashed":
        replace(run_dir / RESULTS, json.dumps({**results, "status": "crashed", "error": error, **more}, indent=2))


def provenance(run_dir: Path) -> Node:
    """What a result depends on beside its configuration, and the command that gives it again."""
    overrides = yaml.safe_load((run_dir / OVERRIDES).read_text()) if (run_dir / OVERRIDES).is_file() else []
    packages = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "hydra-core", "wandb", "numpy")
    return {
        "command": shlex.join(["python", sys.argv[0], *overrides]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}},
        "host": platform.node(),
        "process": os.getpid(),
    }


def commit() -> str | None:
    """The source's git commit, `+changes` if files differ from it; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    with suppress(OSError, subprocess.CalledProcessError):
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout.strip()
        return name + ("+changes" if changed else "")
    return None
