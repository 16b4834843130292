"""The ledger of a sweep: what its jobs are, and how far each one is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitlab.schema import Node

Status = Literal["waiting", "running", "finished", "pruned", "preempted", "interrupted", "crashed", "cancelled"]


@dataclass(frozen=True)
class Job:
    """One job of a sweep."""

    id: str
    folder: Path
    choices: dict[str, str]
    status: Status
    attempts: int
    results: Node
    config: Node


@dataclass(frozen=True)
class Sweep:
    """A sweep and its jobs."""

    folder: Path
    name: str
    command: str
    objectives: dict[str, Literal["min", "max"]]
    jobs: list[Job]


def read_sweep(folder: Path) -> Sweep:
    """The sweep in a folder."""
    raise NotImplementedError
