"""The ledger of a sweep: its jobs and their states.

SWEEP/sweep.json       the command, the keys that vary, the objectives, the jobs that are planned or were started, and
                       the total of a grid's
SWEEP/cancelled        exists once the sweep was cancelled: no further job starts until its command is given again
SWEEP/JOB/job.json     the starts of the job, with the errors of those that failed
SWEEP/JOB/...          its run folder (vitlab.runs.folder): results.json has its status, a lock shows that it is running

A job's state is stored in its run folder alone. So it is right after a kill at any moment, and several processes, also
on several machines, agree on it through the file system's locks.
"""

import json
import logging
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from vitlab.config import paths
from vitlab.config.overrides import fixed_settings, swept_keys
from vitlab.config.printable import one_line, printable
from vitlab.config.schema import Node, direction, suggest
from vitlab.distributed import environment
from vitlab.jobs import identity
from vitlab.runs import lock
from vitlab.runs.folder import read_results
from vitlab.storage import atomic
from vitlab.sweeps import rebuild

SWEEPS = Path("runs") / "sweeps"
SWEEP, JOB, CANCELLED, LOCK = "sweep.json", "job.json", "cancelled", ".sweep.lock"

Status = Literal[
    "finished", "pruned", "stopped", "running", "waiting", "preempted", "interrupted", "crashed", "cancelled",
    "unreadable",
]  # fmt: skip
Direction = Literal["min", "max"]
DONE: tuple[Status, ...] = ("finished", "pruned")  # never started again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A job, read from its folder; `choices` are its values of what the sweep varies."""

    id: str
    folder: Path
    choices: dict[str, str]
    status: Status
    attempts: int
    results: Node

    @property
    def name(self) -> str:
        return one_line(choices_text(self.choices) or self.id)


@dataclass(frozen=True)
class Sweep:
    """All jobs of a sweep in the order of its plan; the first of its objectives is the main one."""

    folder: Path
    name: str
    command: str
    objectives: dict[str, Direction]
    jobs: list[Job]
    total: int = 0  # jobs of the last grid, of which some may not be planned yet


class NoSweep(ValueError):
    """A folder is not a sweep's."""


def find_sweep(sweep: str | Path) -> Path:
    """Return the folder of a sweep, given by its name or its folder. Raises `NoSweep`."""
    for folder in (Path(sweep), SWEEPS / sweep):
        if (folder / SWEEP).is_file():
            return folder.absolute()
    names = sorted(file.parent.name for file in SWEEPS.glob(f"*/{SWEEP}"))
    hint = suggest(str(sweep), names) or (f"; there are {', '.join(names)}" if names else "")
    raise NoSweep(f"sweep={sweep} is no sweep: neither it nor {SWEEPS / sweep} has a {SWEEP}{hint}")


def read_sweep(folder: Path) -> Sweep:
    folder = find_sweep(folder)
    head = read_head(folder)
    varies = varying_keys(head)
    jobs = [read_job(folder, name, entry, varies) for name, entry in head.get("jobs", {}).items()]
    return Sweep(folder, folder.name, head.get("command", ""), head.get("objectives", {}), jobs, head.get("total") or 0)


def varying_keys(head: Node) -> list[str]:
    """Return the keys that a sweep varies, and those that differ between commands that share its name."""
    settings = [entry["settings"] for entry in head.get("jobs", {}).values()]
    keys = dict.fromkeys(key for values in settings for key in values)
    differ = [key for key in keys if len({values.get(key) for values in settings}) > 1]
    return list(dict.fromkeys([*head.get("varies", []), *differ]))


def choices_text(choices: Mapping[str, str]) -> str:
    """Format choices as overrides: `optimizer.lr=0.001 model.depth=2`."""
    return " ".join(f"{key}={value}" for key, value in choices.items())


def read_job(sweep: Path, name: str, entry: Node, varies: list[str]) -> Job:
    status, results, attempts = read_state(sweep / entry["folder"])
    choices = {key: entry["settings"][key] for key in varies if key in entry["settings"]}
    return Job(name, sweep / entry["folder"], choices, status, len(attempts), results)


def job_status(folder: Path, *, locked_here: bool = False) -> Status:
    """Return a job's status, `interrupted` if it was killed. With `locked_here`, the caller holds its lock."""
    return read_state(folder, locked_here=locked_here)[0]


def read_state(folder: Path, *, locked_here: bool = False) -> tuple[Status, Node, list[Node]]:
    """Return a job's status, results and starts."""
    running: bool | None = None
    with suppress(OSError):  # no locks or no permission here: trust the record
        running = not locked_here and lock.is_locked(folder)
    results, attempts = read_results(folder), read_attempts(folder)  # after the lock: a job records its end before
    status: Status = results.get("status", "waiting")
    if running or (running is None and status == "running"):
        return "running", results, attempts
    killed = status == "crashed" and bool(attempts) and "error" not in attempts[-1]  # before it recorded the error
    started = status == "running" or (status == "waiting" and (folder / JOB).is_file())
    return ("interrupted" if started or killed else status), results, attempts


def read_attempts(folder: Path) -> list[Node]:
    """Return a job's starts so far, each with its error if it failed."""
    attempts = None
    with suppress(OSError):
        attempts = read_json(folder / JOB).get("attempts")
    return [attempt for attempt in attempts if isinstance(attempt, dict)] if isinstance(attempts, list) else []


def count_failures(folder: Path) -> int:
    return sum("error" in attempt for attempt in read_attempts(folder))


def read_json(file: Path) -> Node:
    """Return the content of a file of the ledger, empty if it does not exist or is damaged."""
    with suppress(FileNotFoundError, ValueError, RecursionError):
        status = file.stat()
        parse = parse_json if file.name == SWEEP else parse_json.__wrapped__
        content = parse(file, status.st_mtime_ns, status.st_ino, status.st_size)
        return content if isinstance(content, dict) else {}
    return {}


@lru_cache(maxsize=1)
def parse_json(file: Path, *_version: int) -> Any:
    return json.loads(file.read_text())


def read_head(folder: Path, *, warn: bool = True) -> Node:
    """Return the content of `sweep.json`, empty if it does not exist; rebuild it from the jobs if it is damaged."""
    head = read_json(folder / SWEEP)
    if rebuild.is_ledger(head) or not (folder / SWEEP).exists():
        return head
    head = rebuild.rebuild_ledger(folder)
    if warn:
        rebuilt = f"{len(head['jobs'])} jobs were read from their folders"
        log.warning("%s is damaged: its %s, and others are planned again by its command", folder / SWEEP, rebuilt)
    return head


def ledger_lock(folder: Path) -> AbstractContextManager[object]:
    return lock.folder_lock(folder, LOCK, "start only one process of this sweep at a time")


def write_sweep(folder: Path, *, command: str, varies: Iterable[str], objectives: Mapping[str, Direction]) -> None:
    """Write the ledger of a sweep, or add the keys that another command varies."""
    with ledger_lock(folder):
        head = read_head(folder)
        keys = list(dict.fromkeys([*head.get("varies", []), *varies]))
        new = {"command": command, "varies": keys, "objectives": dict(objectives), "jobs": {}, "planned": {}}
        new |= {key: head[key] for key in ("jobs", "planned") if key in head}
        if new != read_json(folder / SWEEP):
            atomic.atomic_write(folder / SWEEP, json.dumps(new))  # Python's indentation is 30 times slower


def add_jobs(
    folder: Path,
    jobs: Mapping[str, Node],
    *,
    planned: Mapping[str, str] | None = None,
    digest: str = "",
    total: int | None = None,
) -> None:
    """Add jobs to the list, by identity, and remove those with the same settings, which had other defaults.

    `planned` has the identities of a grid's jobs by the digest of their settings, under the `digest` of the files from
    which they are composed; `total` counts those that aren't listed.
    """
    with ledger_lock(folder):
        head = read_head(folder)
        listed: dict[str, Node] = head.get("jobs", {})
        settings = [entry["settings"] for entry in jobs.values()]
        kept = {k: v for k, v in listed.items() if k in jobs or v["settings"] not in settings}
        for name in [name for name in listed if name not in kept]:
            log.warning("%s was made with other defaults, and leaves the sweep", folder / listed[name]["folder"])
        new = {**head, "jobs": {**kept, **jobs}}
        if planned is not None:
            others = {key: value for key, value in head.get("planned", {}).items() if key != digest}
            latest = dict([*others.items()][-1:])  # of another configuration folder, or before a change
            new["planned"] = latest | {digest: {**head.get("planned", {}).get(digest, {}), **planned}}
            new["total"] = total
        if new != read_json(folder / SWEEP):
            atomic.atomic_write(folder / SWEEP, json.dumps(new))  # Python's indentation is 30 times slower


def job_settings(overrides: Iterable[str], varies: Iterable[str]) -> dict[str, str]:
    """Return what overrides set of a job: what its sweep varies, and what decides its result."""
    return {k: v for k, v in fixed_settings(overrides).items() if k in varies or identity.affects_result(k)}


def ledger_entry(sweep: Path, config: Node | str, overrides: list[str]) -> tuple[str, Node]:
    """Return a job's identity and its entry, also if its configuration can't be resolved and `config` is a message."""
    head = read_head(sweep, warn=False)
    varies = head.get("varies", [])
    settings = job_settings(overrides, varies)
    chosen = {key: settings[key] for key in varies if key in settings}
    name = identity.short_digest(settings, 12) if isinstance(config, str) else identity.job_id(config, chosen)
    if listed := head.get("jobs", {}).get(name):
        folder = str(listed["folder"])
    else:  # a job that was started before keeps its folder
        folders = sorted(file.parent.name for file in sweep.glob(f"*{name}/{JOB}"))
        folder = folders[0] if folders else identity.job_name(chosen, name)
    return name, {"folder": folder, "settings": settings}


def job_entry(hydra_cfg: Any, config: Node | str) -> tuple[str, Node]:
    """Return the identity and the entry of the job that Hydra composes; `hydra_cfg` is its node `hydra`."""
    return ledger_entry(Path(hydra_cfg.sweep.dir), config, list(hydra_cfg.overrides.task))


def cancel_sweep(sweep: Sweep) -> int:
    """Mark a sweep as cancelled, and return how many running jobs this stops."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    atomic.atomic_write(sweep.folder / CANCELLED, f"{when} by process {os.getpid()} on {platform.node()}\n")
    return sum(job.status == "running" for job in sweep.jobs)


def cancelled_problem(folder: Path) -> str | None:
    """Return why no job of a cancelled sweep may start, else None."""
    file = folder / CANCELLED
    try:
        by = file.read_text().strip()
    except FileNotFoundError:
        return None
    return f"sweep={folder.name} was cancelled ({by}); the same command resumes it"


def reopen_problem(folder: Path) -> str | None:
    """Return why a command can't resume a cancelled sweep, else None: a job still runs, or a cluster repeats it."""
    cancelled = cancelled_problem(folder)
    if cancelled is None:
        return None
    if environment.is_restart(os.environ):
        return f"{cancelled}, if a user gives it"
    jobs = read_head(folder, warn=False).get("jobs", {}).values()
    running = [entry["folder"] for entry in jobs if job_status(folder / entry["folder"]) == "running"]
    return f"{cancelled} once {', '.join(running)} has ended" if running else None


def objectives_of(sweeper: Mapping[Any, Any], objective: str) -> dict[str, Direction]:
    """Return a search's objectives, or else that of each run."""
    return dict(sweeper.get("objectives") or {objective: direction(objective)})


class RecordSweep(Callback):
    """Hydra callback that writes the ledger before a sweep's first job, with any sweeper and launcher."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        hydra, command = config.hydra, paths.command_line(sys.argv[1:])
        if cancelled := cancelled_problem(Path(hydra.sweep.dir)):
            (Path(hydra.sweep.dir) / CANCELLED).unlink(missing_ok=True)
            print(printable(f"{cancelled.partition(';')[0]}: it is resumed"), file=sys.stderr, flush=True)
        varies = swept_keys(hydra.overrides.task, hydra.sweeper.get("params"))
        objectives = objectives_of(hydra.sweeper, config.objective)
        write_sweep(Path(hydra.sweep.dir), command=command, varies=varies, objectives=objectives)
