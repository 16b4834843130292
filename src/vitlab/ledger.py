"""The ledger of a sweep: which jobs there are, what became of each, and who does what is left.

SWEEP/sweep.json       the command, what varies, the objectives, and the jobs that are planned or were begun
SWEEP/cancelled        there once the sweep was cancelled: nothing more of it starts
SWEEP/JOB/job.json     how often the job was started, and which of these starts failed
SWEEP/JOB/...          its run folder (vitlab.runs): results.json says how it ended, a lock that it is being run

A job's state isn't kept a second time: it is read from its run folder. So a kill at any moment leaves no lie behind,
and several processes, also on several machines, agree on it by the file system's locks.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from filelock import FileLock, Timeout

from vitlab import runs
from vitlab.schema import Node, suggest

SWEEPS = Path("runs") / "sweeps"
SWEEP, JOB, CANCELLED, LOCK = "sweep.json", "job.json", "cancelled", ".sweep.lock"

Status = Literal["waiting", "running", "finished", "pruned", "preempted", "interrupted", "crashed", "cancelled"]
Direction = Literal["min", "max"]
DONE: tuple[Status, ...] = ("finished", "pruned")  # nothing is left to do


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


def read_job(folder: Path, identity: str, entry: Node, varies: list[str]) -> Job:
    """A job from its folder, which may not be there yet."""
    config: Node = {}
    with suppress(OSError, AssertionError, yaml.YAMLError):
        config = runs.read_config(folder)
    return Job(
        id=identity,
        folder=folder,
        choices={key: entry["settings"][key] for key in varies if key in entry["settings"]},
        status=job_status(folder),
        attempts=len(read_json(folder / JOB).get("attempts", [])),
        results=runs.read_results(folder),
        config=config,
    )


def job_status(folder: Path) -> Status:
    """What a job's folder says of it. One that was killed was interrupted."""
    if is_run(folder):
        return "running"
    status: Status = runs.read_results(folder).get("status", "waiting")
    begun = status == "running" or (status == "waiting" and (folder / JOB).is_file())
    return "interrupted" if begun else status


def is_run(folder: Path) -> bool:
    """Whether a process runs the job now. A glance: it keeps nobody from taking the job for longer than that."""
    try:
        for name in runs.LOCKS.values():
            if (folder / name).exists():
                with FileLock(folder / name, timeout=0):
                    pass
    except Timeout:
        return True
    except (
        OSError,
        NotImplementedError,
    ):  # no locks on this file system, or not ours to look at: what is written counts
        return bool(runs.read_results(folder).get("status") == "running")
    return False


def read_json(file: Path) -> Node:
    """What a file of the ledger holds; empty where there is none."""
    with suppress(FileNotFoundError, json.JSONDecodeError):
        found = json.loads(file.read_text())
        assert isinstance(found, dict)
        return found
    return {}
