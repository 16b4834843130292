"""The ledger of a sweep: which jobs there are, what became of each, and who does what is left.

SWEEP/sweep.json       the command, what varies, the objectives, and the jobs that are planned or were begun
SWEEP/cancelled        there once the sweep was cancelled: nothing more of it starts
SWEEP/JOB/job.json     how often the job was started, and which of these starts failed
SWEEP/JOB/...          its run folder (vitlab.runs.folder): results.json says how it ended, a lock that it is being run

A job's state isn't kept a second time: it is read from its run folder. So a kill at any moment leaves no lie behind,
and several processes, also on several machines, agree on it by the file system's locks.
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
from pathlib import Path
from typing import Any, Literal

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from vitlab.config import objective, paths
from vitlab.config.overrides import fixed_settings, swept_keys
from vitlab.config.schema import Node, suggest
from vitlab.jobs import identity
from vitlab.runs import lock
from vitlab.runs.folder import read_config, read_results
from vitlab.storage import atomic

SWEEPS = Path("runs") / "sweeps"
SWEEP, JOB, CANCELLED, LOCK = "sweep.json", "job.json", "cancelled", ".sweep.lock"

Status = Literal["waiting", "running", "finished", "pruned", "preempted", "interrupted", "crashed", "cancelled"]
Direction = Literal["min", "max"]
DONE: tuple[Status, ...] = ("finished", "pruned")  # nothing is left to do

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A job as its folder tells: `choices` are what it has of what its sweep varies."""

    id: str
    folder: Path
    choices: dict[str, str]
    status: Status
    attempts: int
    results: Node
    config: Node

    @property
    def name(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.choices.items()) or self.id


@dataclass(frozen=True)
class Sweep:
    """All jobs of a sweep in the order of its plan; the first of its objectives is the main one."""

    folder: Path
    name: str
    command: str
    objectives: dict[str, Direction]
    jobs: list[Job]


class NoSweep(ValueError):
    """A folder is no sweep's."""


# -------------------------------------------------------------------------------------------------------- to be read


def find_sweep(sweep: str | Path) -> Path:
    """The folder of a sweep that is given by its name or its folder. Raises `NoSweep`."""
    for folder in (Path(sweep), SWEEPS / sweep):
        if (folder / SWEEP).is_file():
            return folder.absolute()
    names = sorted(file.parent.name for file in SWEEPS.glob(f"*/{SWEEP}"))
    there = suggest(str(sweep), names) or (f"; there are {', '.join(names)}" if names else "")
    raise NoSweep(f"sweep={sweep} is no sweep: neither it nor {SWEEPS / sweep} has a {SWEEP}{there}")


def read_sweep(folder: Path) -> Sweep:
    """A sweep as it stands. Raises `NoSweep`."""
    folder = find_sweep(folder)
    head = read_json(folder / SWEEP)
    entries: dict[str, Node] = head.get("jobs", {})
    varies = varying_keys(head)
    return Sweep(
        folder=folder,
        name=folder.name,
        command=head.get("command", ""),
        objectives=head.get("objectives", {}),
        jobs=[read_job(folder / entry["folder"], name, entry, varies) for name, entry in entries.items()],
    )


def varying_keys(head: Node) -> list[str]:
    """What a sweep was told to vary, and what differs between commands that share its name."""
    settings = [entry["settings"] for entry in head.get("jobs", {}).values()]
    keys = dict.fromkeys(key for values in settings for key in values)
    differ = [key for key in keys if len({values.get(key) for values in settings}) > 1]
    return list(dict.fromkeys([*head.get("varies", []), *differ]))


def read_job(folder: Path, name: str, entry: Node, varies: list[str]) -> Job:
    """A job from its folder, which may not be there yet."""
    config: Node = {}
    with suppress(OSError, AssertionError, yaml.YAMLError):
        config = read_config(folder)
    return Job(
        id=name,
        folder=folder,
        choices={key: entry["settings"][key] for key in varies if key in entry["settings"]},
        status=job_status(folder),
        attempts=len(read_attempts(folder)),
        results=read_results(folder),
        config=config,
    )


def job_status(folder: Path, *, held: bool = False) -> Status:
    """What a job's folder says of it; `held`: by the one who asks. One that was killed was interrupted."""
    if not held and is_running(folder):
        return "running"
    status: Status = read_results(folder).get("status", "waiting")
    starts = read_attempts(folder)
    unnoted = status == "crashed" and bool(starts) and "error" not in starts[-1]  # of a launcher that was killed
    begun = status == "running" or (status == "waiting" and (folder / JOB).is_file())
    return "interrupted" if begun or unnoted else status


def read_attempts(folder: Path) -> list[Node]:
    """A job's starts so far, each with its error if it failed."""
    found: list[Node] = read_json(folder / JOB).get("attempts", [])
    return found


def is_running(folder: Path) -> bool:
    """Whether a process runs the job now, at a glance."""
    try:
        return lock.is_locked(folder)
    except (OSError, NotImplementedError):  # no locks here, or not ours to look at: what is written counts
        return bool(read_results(folder).get("status") == "running")


def read_json(file: Path) -> Node:
    """What a file of the ledger holds; empty where there is none."""
    with suppress(FileNotFoundError, json.JSONDecodeError):
        found = json.loads(file.read_text())
        assert isinstance(found, dict)
        return found
    return {}


# ----------------------------------------------------------------------------------------------------- to be written


def ledger_lock(folder: Path) -> AbstractContextManager[object]:
    """Nobody else changes the sweep's list of jobs while the block runs."""
    return lock.folder_lock(folder, LOCK, "start only one process of this sweep at a time")


def write_sweep(folder: Path, *, command: str, varies: Iterable[str], objectives: Mapping[str, Direction]) -> None:
    """Writes down what a sweep is, or adds to it what another command varies."""
    with ledger_lock(folder):
        head = read_json(folder / SWEEP)
        keys = list(dict.fromkeys([*head.get("varies", []), *varies]))
        new = {"command": command, "varies": keys, "objectives": dict(objectives), "jobs": head.get("jobs", {})}
        if new != head:
            atomic.atomic_write(folder / SWEEP, json.dumps(new, indent=1))


def add_jobs(folder: Path, jobs: Mapping[str, Node]) -> None:
    """Puts jobs on the list, by identity: `{"folder": name, "settings": {key: value}}`.

    One of the same settings but another identity was of another source or other files of `conf`: it is no longer
    listed, and its folder stays.
    """
    with ledger_lock(folder):
        head = read_json(folder / SWEEP)
        listed: dict[str, Node] = head.get("jobs", {})
        former = {name: entry for name, entry in listed.items() if name not in jobs}
        given = [entry["settings"] for entry in jobs.values()]
        for name in [name for name, entry in former.items() if entry["settings"] in given]:
            log.warning("%s is of other defaults than now, and leaves the sweep", folder / former.pop(name)["folder"])
        found = {**{name: listed[name] for name in listed if name in former or name in jobs}, **jobs}
        if found != listed:
            atomic.atomic_write(folder / SWEEP, json.dumps({**head, "jobs": found}, indent=1))


def ledger_entry(sweep: Path, config: Node | str, overrides: list[str]) -> tuple[str, Node]:
    """A job's identity and its line on the list: the folder that it has, or is to have, and its settings.

    `config` is a message where it couldn't be resolved: that job will fail, in a folder of its own.
    """
    head = read_json(sweep / SWEEP)
    varies = head.get("varies", [])
    settings = {k: v for k, v in fixed_settings(overrides).items() if k in varies or identity.affects_result(k)}
    chosen = {key: settings[key] for key in varies if key in settings}
    name = identity.short_digest(settings, 12) if isinstance(config, str) else identity.job_id(config, chosen)
    if listed := head.get("jobs", {}).get(name):
        folder = str(listed["folder"])
    else:  # begun once, if it is there
        there = sorted(file.parent.name for file in sweep.glob(f"*{name}/{JOB}"))
        folder = there[0] if there else identity.job_name(chosen, name)
    return name, {"folder": folder, "settings": settings}


def job_entry(hydra_cfg: DictConfig, config: Node | str) -> tuple[str, Node]:
    """The same for the job that Hydra composes: `hydra_cfg` is its node `hydra`."""
    return ledger_entry(Path(hydra_cfg.sweep.dir), config, list(hydra_cfg.overrides.task))


def cancel_sweep(sweep: Sweep) -> int:
    """Marks a sweep as cancelled, and returns how many of its jobs are asked to stop by that."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    atomic.atomic_write(sweep.folder / CANCELLED, f"{when} by process {os.getpid()} on {platform.node()}\n")
    return sum(job.status == "running" for job in sweep.jobs)


def cancelled_problem(folder: Path) -> str | None:
    """Why nothing of a sweep may start: it was cancelled."""
    mark = folder / CANCELLED
    try:
        said = mark.read_text().strip()
    except FileNotFoundError:
        return None
    return f"sweep={folder.name} was cancelled ({said}); remove {mark} to go on with it"


class RecordSweep(Callback):
    """Hydra's callback that writes the sweep down before its first job, whatever sweeper and launcher it has."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        hydra = config.hydra
        params = hydra.sweeper.get("params") or hydra.sweeper.get("search_space") or {}
        names = [config.objective] if isinstance(config.objective, str) else list(config.objective)
        write_sweep(
            Path(hydra.sweep.dir),
            command=paths.command_line(sys.argv[1:]),
            varies=swept_keys(hydra.overrides.task, params),
            objectives={name: objective.direction(name) for name in names},
        )
