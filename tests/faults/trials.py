"""Trials: what each kind of fault gets, the list of kinds, and the table of what was lost."""

import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from faults import programs


@dataclass
class Trial:
    """Number, random numbers and folder of a trial, and the folder of what all trials share."""

    number: int
    random: random.Random
    folder: Path
    work: Path


Fault = Callable[[Trial], object]
FAULTS: dict[str, tuple[int, Fault]] = {}  # number of trials and function, by name


def fault(name: str, times: int) -> Callable[[Fault], Fault]:
    def add(function: Fault) -> Fault:
        assert name not in FAULTS, name
        FAULTS[name] = (times, function)
        return function

    return add


def run_trial(name: str, seed: int, number: int, work: Path) -> tuple[str, int, str, float]:
    """Run a trial. Returns the kind, the number, the problem or an empty string, and seconds."""
    begin = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="trial-", dir=work))
    problem = ""
    try:
        FAULTS[name][1](Trial(number, random.Random(f"{seed} {name} {number}"), folder, work))
    except Exception as error:
        text = str(error) if isinstance(error, AssertionError) else traceback.format_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"trial {number} ({Path(where.filename).name}:{where.lineno}): {text}"
        (work / "lost").mkdir(exist_ok=True)
        with suppress(OSError):
            shutil.copytree(folder, work / "lost" / f"{name} {number}".replace("/", " "), dirs_exist_ok=True)
    programs.kill_sessions()
    shutil.rmtree(folder, ignore_errors=True)
    return name, number, problem, time.monotonic() - begin


def table(times: dict[str, int], lost: dict[str, list[str]]) -> str:
    """A Markdown table of the trials."""
    lines = ["| fault | tried | survived | lost |", "|---|---|---|---|"]
    lines += [f"| {name} | {n} | {n - len(lost[name])} | {len(lost[name])} |" for name, n in times.items()]
    total, bad = sum(times.values()), sum(map(len, lost.values()))
    return "\n".join([*lines, f"| **all** | **{total}** | **{total - bad}** | **{bad}** |"])
