"""Measure how the cost around training grows: with files, labels, jobs, runs and rows of metrics.

    subject, size -> made-up data -> each contender in a forked process: CPU seconds, and memory in addition to the data

All sizes are measured in the same rounds, and the exponents of all contenders are fitted; the ideal one is 1. The cost
at a real scale is that of the largest size, times the ratio of both sizes to the power of the exponent.
"""

import ctypes
import gc
import logging
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmark.case import EXPONENT, Case, with_exponents
from benchmark.timing import Clock, Contender, Measurement
from scale.subjects import Subject
from vitlab.runs.record import muted_logs

PART = "scale"
PEAK, PRIVATE = "peak MB", "private MB"


def subject_cases(name: str, subject: Subject, factor: float, clock: Clock) -> list[Case]:
    """Measure a subject at all of its sizes."""
    sizes, contenders = [max(1, round(size * factor)) for size in subject.sizes], list[Contender]()
    with TemporaryDirectory(prefix="vitlab-scale-") as folder:
        for size in sizes:
            place = Path(folder, str(size))
            place.mkdir()
            data = subject.prepare(place, size)
            contenders += [forked_contender(title, run, data) for title, run in subject.contenders.items()]
        measured = clock.measure(contenders)
    count = len(subject.contenders)
    rows = [measured[first : first + count] for first in range(0, len(measured), count)]
    axis = f"{subject.unit} ({name})"
    cases = [
        Case(part=PART, name=f"{name}, {size:,} {subject.unit}", unit=None, axis=axis, size=size, measured=row)
        for size, row in zip(sizes, rows, strict=True)
    ]
    *others, last = with_exponents(cases, [1.0] * count)
    real = [replace(m, figures={**m.figures, **real_costs(m, sizes[-1], subject.real)}) for m in last.measured]
    return [*others, replace(last, measured=real)]


def real_costs(measurement: Measurement, size: int, real: Mapping[str, int]) -> dict[str, float]:
    """The seconds at real sizes; at least linear, since small sizes have constant parts."""
    exponent = max(1.0, measurement.figures[EXPONENT])
    return {f"s at {name}": measurement.median * (large / size) ** exponent for name, large in real.items()}


def forked_contender(name: str, run: Callable[[Any], object], data: Any) -> Contender:
    """A contender whose calls fork a process and return its CPU seconds; figures: its memory."""
    figures: dict[str, float] = {}

    def measure() -> float:
        release_free_memory()
        receiver, sender = get_context("fork").Pipe(duplex=False)
        process = get_context("fork").Process(target=measure_call, args=(run, data, sender))
        process.start()
        sender.close()
        try:
            seconds, used = receiver.recv()
        except EOFError:
            process.join()
            raise RuntimeError(f"{name} failed with status {process.exitcode}; its error is above") from None
        finally:
            process.join()
        figures.update({key: max(value, figures.get(key, 0.0)) for key, value in used.items()})
        return float(seconds)

    return Contender(name=name, run=measure, figures=figures, self_timed=True)


def measure_call(run: Callable[[Any], object], data: Any, sender: Connection) -> None:
    """Send the CPU seconds of a call with its processes, and the memory that it takes."""
    gc.freeze()
    reset_peak()
    before, start = memory(), cpu_seconds()
    with muted_logs("vitlab", level=logging.ERROR):
        result = run(data)
    seconds, after = cpu_seconds() - start, memory()
    del result
    sender.send((seconds, {key: after[key] - before[key] for key in after}))


def cpu_seconds() -> float:
    """CPU time of this process and of its ended children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def release_free_memory() -> None:
    """Return memory that this process has freed, or a call would get its pages and seem to need none (glibc)."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> None:
    """Let the peak of this process's memory begin now (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory() -> dict[str, float]:
    """The peak of this process's memory, and what it doesn't share with its parent; nothing except on Linux."""
    with suppress(OSError):
        peak = memory_line(Path("/proc/self/status"), "VmHWM:")
        return {PEAK: peak, PRIVATE: memory_line(Path("/proc/self/smaps_rollup"), "Private_Dirty:")}
    return {}


def memory_line(file: Path, name: str) -> float:
    lines = (line.split() for line in file.read_text().splitlines())
    return next(float(words[1]) / 1000 for words in lines if words[0] == name)
