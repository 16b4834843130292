"""The run folder: what a run is made from, what it leaves, and who owns it.

config.yaml      the resolved configuration: the run can be made again from this file alone
results.json     status, scores, counts, seconds, provenance
train.log        everything logged
metrics.csv      every logged number          (vitlab.tracking)
skipped.csv      bad images left out, if any  (vitlab.data.scan)
checkpoints/     best, last, the one before   (vitlab.checkpoints)
figures/         curves.png                   (vitlab.callbacks)
.hydra/          what Hydra composed it from
"""

import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import yaml

from vitlab import launch
from vitlab.config import paths
from vitlab.config.overrides import as_single_run
from vitlab.config.schema import Node
from vitlab.stopping import Outcome, Stopped

CONFIG, RESULTS, OVERRIDES = "config.yaml", "results.json", ".hydra/overrides.yaml"

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
    """What `results.json` holds; empty where there is none yet, or no whole one."""
    with suppress(FileNotFoundError, json.JSONDecodeError):
        results = json.loads((run_dir / RESULTS).read_text())
        assert isinstance(results, dict)
        return results
    return {}


def replace(file: Path, content: str | bytes) -> None:
    """Writes a file so that a reader, or a kill, sees the old content or the new one, never half of it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    if isinstance(content, str):
        temporary.write_text(content)
    else:
        temporary.write_bytes(content)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(file)


# ---------------------------------------------------------------------------------------------------------- one owner


def unwritable(setting: str, run_dir: Path) -> str | None:
    """Why a run can't keep its files in a folder that may not be there yet; None if it can. Nothing is left behind."""
    try:
        there = next(folder for folder in (run_dir, *run_dir.parents) if folder.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return f"{setting}={run_dir} can't be written to ({reason}); name another folder"
    return None


LOCKS = {"job": ".job.lock", "rank0": ".rank0.lock"}  # who starts the ranks, and the rank that writes
LINGERS = 20.0  # seconds that what a killed process left (its loading workers) may hold a lock
GLANCE = 0.5  # seconds that somebody may hold it who only looks whether it is held


@contextmanager
def held(run_dir: Path, role: str) -> Iterator[None]:
    """Owns a run folder until the block ends, or the process does, however it ends. Raises `Occupied`."""
    patience = LINGERS if lock_is_left_behind(run_dir) else GLANCE
    try:
        lock = locked(run_dir, LOCKS[role], "take care that only one process trains in it", timeout=patience)
    except TimeoutError:
        raise Occupied(f"{run_dir} is being trained in by {holder(read_results(run_dir))}") from None
    with lock:
        yield


def locked(folder: Path, name: str, remedy: str, *, timeout: float = -1) -> AbstractContextManager[object]:
    """Locks a folder at once, until the block ends or the process does; on file systems without locks tells a remedy.

    Raises `TimeoutError` where somebody holds the lock for longer than `timeout` seconds (-1: waits).
    """
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / name).acquire(timeout=timeout)
    except TimeoutError:
        raise
    except (OSError, NotImplementedError) as error:
        log.warning("%s can't be locked (%s): %s", folder, error, remedy)
        return nullcontext()


def lock_is_left_behind(run_dir: Path) -> bool:
    """Whether the process that a folder knows of is dead: what still holds its lock will go as well."""
    results = read_results(run_dir)
    return results.get("host") == platform.node() and not lives(results.get("process"))


def is_held(run_dir: Path, roles: Iterable[str] = LOCKS) -> bool:
    """Whether another process owns a run folder. Waits a moment for what a killed one has left behind."""
    deadline = time.monotonic() + LINGERS
    while True:
        try:
            if not is_locked(run_dir, roles):
                return False
        except (OSError, NotImplementedError):
            return False
        if time.monotonic() > deadline or not lock_is_left_behind(run_dir):
            return True
        time.sleep(0.2)


def is_locked(run_dir: Path, roles: Iterable[str] = LOCKS) -> bool:
    """Whether somebody holds a lock of a run folder now. Raises `OSError` or `NotImplementedError` without locks.

    A glance: it keeps nobody from taking the folder for longer than that.
    """
    from filelock import FileLock

    try:
        for role in roles:
            if (run_dir / LOCKS[role]).exists():
                with FileLock(run_dir / LOCKS[role], timeout=0):
                    pass
    except TimeoutError:
        return True
    return False


def lives(process: Any) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(int(process), 0)
    except (OSError, TypeError, ValueError):
        return False
    return True


def holder(results: Node) -> str:
    """Who trains in a folder, as far as its `results.json` tells."""
    return f"process {results.get('process', '(not known)')} on {results.get('host', 'a machine not known')}"


class Occupied(RuntimeError):
    """Another process trains in the folder."""


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
    handlers[0].addFilter(lambda record: not getattr(record, "again", False))  # another rank has told it
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
    """Keeps `results.json`: `running` until the block ends, then `finished` (or the `status` that the results have),
    `preempted` or `interrupted` where it was asked to stop, or `crashed` with the error.

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
    except Stopped as stop:
        write(status=stop.outcome)
        log.warning("%s: stopped as it was asked to; %s", stop.outcome, way_on_from(run_dir))
        raise
    except BaseException as error:
        reason, rank = told(error), launch.rank(os.environ)
        with suppress(OSError):  # the disk may be full, and that may be the reason
            record_crash(run_dir, reason, seconds=seconds(), failed_rank=rank)
        log.error(reason, exc_info=error, extra={"again": told_by_another(run_dir, error, rank)})
        raise
    write(status=results.get("status", "finished"))


def told(error: BaseException) -> str:
    """An error in a line."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    return f"{type(error).__name__}: {error}"


def told_by_another(run_dir: Path, error: BaseException, rank: int) -> bool:
    """Whether another rank failed by the same error before, and so has told it on the console."""
    results = read_results(run_dir)
    return results.get("error") == told(error) and results.get("failed_rank", rank) != rank


def record_end(run_dir: Path, outcome: Outcome) -> None:
    """Marks a run as one that ended as it was asked to."""
    replace(run_dir / RESULTS, json.dumps({**read_results(run_dir), "status": outcome}, indent=2))


def way_on_from(run_dir: Path) -> str:
    """How what was asked to stop goes on: a training where it was, packing too, and all else from its start."""
    config = read_config(run_dir) if (run_dir / CONFIG).is_file() else {}
    if "resume" in config:
        return f"resume={run_dir} goes on"
    if "shard_images" in config and config.get("out") is not None:
        return "the same command goes on"
    return f"the same command begins anew; what this one had written is in {run_dir}"


def way_on(run_dir: Path) -> str:
    """What a user can do about a run that has ended too early."""
    if any((run_dir / "checkpoints").glob("*.ckpt")):
        return f"resume={run_dir} goes on from the last checkpoint"
    return "no checkpoint was made yet"


def record_crash(run_dir: Path, error: str, *, first: bool = False, **more: Any) -> None:
    """Marks a run as crashed, unless that is already known: the reason told first is the one that counts, but one that
    is known to have come `first` goes before.
    """
    with locked(run_dir, ".crash.lock", "the last of two reasons for a crash may be the one that is kept"):
        results = read_results(run_dir)
        if first or results.get("status") != "crashed":
            replace(run_dir / RESULTS, json.dumps({**results, "status": "crashed", "error": error, **more}, indent=2))


def provenance(run_dir: Path) -> Node:
    """What a result depends on beside its configuration, and the command that gives it again."""
    from importlib import metadata

    overrides = yaml.safe_load((run_dir / OVERRIDES).read_text()) if (run_dir / OVERRIDES).is_file() else []
    in_sweep = (run_dir / CONFIG).is_file() and read_config(run_dir).get("sweep")
    overrides = as_single_run(overrides) if in_sweep else [o for o in overrides if not o.startswith("sweep=")]
    packages = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "hydra-core", "wandb", "numpy")
    return {
        "command": paths.command_line(overrides),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {"python": platform.python_version(), "vitlab": paths.version()}
        | {p: metadata.version(p) for p in packages},
        "host": platform.node(),
        "process": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),  # a requeued job keeps it
    }


def commit() -> str | None:
    """The source's git commit, `+changes` if files differ from it; None outside a repository."""
    if paths.IN_WHEEL:  # the environment may be in a repository of something else
        return None
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    with suppress(OSError, subprocess.CalledProcessError):
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout.strip()
        return name + ("+changes" if changed else "")
    return None
