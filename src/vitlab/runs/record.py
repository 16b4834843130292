"""The log and `results.json` of a run: status, errors, provenance."""

import json
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from vitlab.config import paths
from vitlab.config.overrides import as_single_run
from vitlab.config.printable import printable
from vitlab.config.schema import Node
from vitlab.distributed import environment
from vitlab.distributed.signals import Outcome, StopRequested
from vitlab.runs.folder import CONFIG, RESULTS, log, read_config, read_overrides, read_results
from vitlab.runs.lock import folder_lock
from vitlab.storage.atomic import atomic_write


@contextmanager
def log_to(file: Path, first_rank: bool) -> Iterator[None]:
    """Log messages and warnings to the console and to `file`; from the ranks after the first, errors only.

    Replaces the root logger's handlers (Hydra's) within the block, or every line would be shown twice.
    """
    root, level = logging.getLogger(), logging.INFO if first_rank else logging.ERROR
    handlers: list[logging.Handler] = [CurrentStderr(), logging.FileHandler(file, delay=True, encoding="utf-8")]
    handlers[0].setFormatter(MessageFormatter("%(message)s"))
    handlers[1].setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for handler in handlers:
        handler.setLevel(level)
    handlers[0].addFilter(lambda record: not getattr(record, "again", False))  # another rank has logged it
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


class PrintableFormatter(logging.Formatter):
    """Escapes what names may hold, tracebacks' too, and no terminal or file should get."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class MessageFormatter(PrintableFormatter):
    """Leaves tracebacks to the file: Python, or Hydra, prints them on the console."""

    def formatException(self, ei: Any) -> str:
        return ""


class CurrentStderr(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, which a progress bar replaces to stay below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


@contextmanager
def record_run(run_dir: Path, first_rank: bool) -> Iterator[Node]:
    """Write `results.json`: `running` until the block ends, then `finished` (or the results' own `status`), `preempted`
    or `interrupted` after a request to stop, or `crashed` with the error.

    Every rank records its error: the launcher may end the others, rank 0 too, before they notice.
    """
    start = time.time()
    record: Node = {"status": "running", **provenance(run_dir)}
    results: Node = {}

    def seconds() -> float:
        return round(time.time() - start, 2)

    def write(**more: Any) -> None:
        if first_rank:
            atomic_write(run_dir / RESULTS, json.dumps({**record, **results, "seconds": seconds(), **more}, indent=2))

    write()
    try:
        yield results
    except StopRequested as stop:
        write(status=stop.outcome)
        log.warning("%s: stopped on request; %s", stop.outcome, restart_hint(run_dir))
        raise
    except BaseException as error:
        reason, rank = one_line(error), environment.rank(os.environ)
        with suppress(OSError):  # the reason may be a full disk
            record_crash(run_dir, reason, seconds=seconds(), failed_rank=rank)
        log.error(reason, exc_info=error, extra={"again": is_reported(run_dir, error, rank)})
        raise
    write(status=results.get("status", "finished"))


def one_line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    return f"{type(error).__name__}: {error}"


def is_reported(run_dir: Path, error: BaseException, rank: int) -> bool:
    """Whether another rank has failed with the same error and logged it."""
    results = read_results(run_dir)
    return results.get("error") == one_line(error) and results.get("failed_rank", rank) != rank


def record_end(run_dir: Path, outcome: Outcome) -> None:
    """Mark a run as stopped on request."""
    atomic_write(run_dir / RESULTS, json.dumps({**read_results(run_dir), "status": outcome}, indent=2))


def restart_hint(run_dir: Path) -> str:
    """How to continue after a stop: a training and packing resume, other commands restart."""
    config = read_config(run_dir) if (run_dir / CONFIG).is_file() else {}
    if "resume" in config:
        return f"resume={run_dir} resumes it"
    if "shard_images" in config and config.get("out") is not None:
        return "the same command resumes it"
    return f"the same command starts from the beginning; the output so far is in {run_dir}"


def resume_hint(run_dir: Path) -> str:
    """How to continue after a crash."""
    if any((run_dir / "checkpoints").glob("*.ckpt")):
        return f"resume={run_dir} resumes from the last checkpoint"
    return "no checkpoint was made yet"


def record_crash(run_dir: Path, error: str, *, first: bool = False, **more: Any) -> None:
    """Record a crash. The first recorded reason wins, unless `first=True`."""
    with folder_lock(run_dir, ".crash.lock", "the last of two reasons for a crash may be recorded, not the first"):
        results = read_results(run_dir)
        if first or results.get("status") != "crashed":
            results |= {"status": "crashed", "error": error, **more}
            atomic_write(run_dir / RESULTS, json.dumps(results, indent=2))


def provenance(run_dir: Path) -> Node:
    """The command, commit, versions and machine of a result."""
    from importlib import metadata

    overrides = read_overrides(run_dir)
    in_sweep = (run_dir / CONFIG).is_file() and read_config(run_dir).get("sweep")
    overrides = as_single_run(overrides) if in_sweep else [o for o in overrides if not o.startswith("sweep=")]
    packages = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "hydra-core", "wandb", "numpy")
    return {
        "command": paths.command_line(overrides),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "versions": {"python": platform.python_version(), "vitlab": paths.version()}
        | {p: metadata.version(p) for p in packages},
        "host": platform.node(),
        "process": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),  # the same after a requeue
    }


@cache
def git_commit() -> str | None:
    """The source's commit at the first call, with `+changes` if files differ from it; None outside a repository."""
    if paths.IN_WHEEL:  # the environment may be in another repository
        return None
    folder = str(Path(__file__).resolve().parent)
    command = ["git", "-C", folder, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None


@contextmanager
def muted_logs(*loggers: str, level: int = logging.ERROR) -> Iterator[None]:
    """Mute these loggers below `level` within the block; if that is above WARNING, Python's warnings too."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(level)
    try:
        with warnings.catch_warnings():
            if level > logging.WARNING:
                warnings.simplefilter("ignore")
            yield
    finally:
        for name, former in levels.items():
            logging.getLogger(name).setLevel(former)
