"""Run the parts of a benchmark, and log and write the results after each case."""

import logging
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from benchmark import results
from benchmark.case import Case, Part
from benchmark.goals import outcomes
from benchmark.timing import Clock
from vitlab.runs.record import muted_logs

log = logging.getLogger(__name__)


def run(parts: Mapping[str, Part], clock: Clock, folder: Path) -> None:
    """Measure the parts. An error ends its part, and is raised after the last one."""
    title, cases, errors = description(clock), list[Case](), list[str]()
    log.info("%s", title)
    for name, part in parts.items():
        begin = time.monotonic()
        own = muted_logs("benchmark", level=logging.INFO)
        try:
            with muted_logs("vitlab", level=logging.WARNING), own:
                for case in part.cases(clock):
                    cases.append(case)
                    results.write(cases, folder, title=title)
                    log.info("%s", line(case))
        except Exception as error:
            log.exception("%s failed; its measurements so far are kept, and the next part follows", name)
            errors.append(f"{name} ({type(error).__name__}: {error})")
        log.info("%s: %.0f s", name, time.monotonic() - begin)
    ends = [reached for case in cases for reached, _ in outcomes(case)]
    goals = f"{sum(ends)} of {len(ends)} goals reached; " if ends else ""
    log.info("%s", f"{goals}{folder / 'benchmark.md'}" if cases else "nothing was measured")
    if errors:
        raise RuntimeError(f"parts failed: {'; '.join(errors)}")


def line(case: Case) -> str:
    """A case in a line: the contenders' speeds and the outcomes of the goals."""
    speeds = "   ".join(f"{m.name} {results.format_cell(case.speed(m))}" for m in case.measured)
    goals = "".join(f"   {text}" for _, text in outcomes(case))
    return f"{case.part}: {case.name}   {speeds} {f'{case.unit}/s' if case.unit else 's'}{goals}"


def clock(*, rounds: int, seconds: float, threads: int | None, gpu: bool) -> Clock:
    """A clock for these settings. Sets torch's number of threads."""
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() and gpu else "cpu")
    return Clock(rounds=rounds, seconds=seconds, device=device)


def description(clock: Clock) -> str:
    """Processor, threads and versions: the title of the tables."""
    name = torch.cuda.get_device_name(clock.device) if clock.device.type == "cuda" else processor()
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "torchvision", "timm", "lightning"))
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}, {versions}"


def processor() -> str:
    """The CPU's name, or its architecture."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
