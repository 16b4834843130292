"""The benchmark itself: part after part, told as it is measured, written after each case."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vitlab.benchmarking import machine, results
from vitlab.benchmarking.timing import Case, Clock, Goal, Part
from vitlab.schema import Node

log = logging.getLogger(__name__)


def run(parts: Mapping[str, Part], clock: Clock, folder: Path) -> Node:
    """Returns how many goals were reached and missed.

    Raises `RuntimeError` once all parts have had their turn, where some of them ended with an error.
    """
    title, cases, failed = machine.described(clock), list[Case](), list[str]()
    log.info("%s", title)
    for name, part in parts.items():
        begun = time.monotonic()
        try:
            with trainings_unsaid():
                for case in part.cases(clock):
                    cases.append(case)
                    results.write(cases, folder, title=title)
                    log.info("%s", line(case))
            part.draw([case for case in cases if case.part == name], folder)
        except Exception as error:
            log.exception("%s ended with an error; what it had measured is kept, and other parts go on", name)
            failed.append(f"{name} ({type(error).__name__}: {error})")
        log.info("%s: %.0f s", name, time.monotonic() - begun)
    outcomes = [outcome for case in cases for outcome in case.outcomes()]
    reached = sum(ratio >= goal.least for goal, _, ratio in outcomes)
    if cases:
        goals = f"goals: {reached} of {len(outcomes)} reached; " if outcomes else ""
        log.info("%s%s", goals, folder / "benchmark.md")
    else:
        log.info("nothing was measured")
    if failed:
        raise RuntimeError(f"not measured to the end: {'; '.join(failed)}")
    return {"cases": len(cases), "goals reached": reached, "goals missed": len(outcomes) - reached}


@contextmanager
def trainings_unsaid() -> Iterator[None]:
    """Without what a training tells of itself, such as its groups of parameters and its splits; warnings are shown."""
    loggers = [logging.getLogger(name) for name in ("vitlab.build", "vitlab.classifier", "vitlab.data")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def line(case: Case) -> str:
    """A case in a line: everybody's items a second, or seconds, then what came of each goal."""
    values = [(m.name, m.seconds_of_item if case.lasting else m.rate) for m in case.measured]
    told = "   ".join(f"{name} {value:,.4g}" for name, value in values)
    goals = "".join(f"   {outcome_told(case, *outcome)}" for outcome in case.outcomes())
    return f"{case.part}: {case.name}   {told} {'s' if case.lasting else f'{case.unit}/s'}{goals}"


def outcome_told(case: Case, goal: Goal, rival: str, ratio: float) -> str:
    said = goal.outcome(case[goal.ours], rival, ratio, lasting=case.lasting)
    if goal.found:
        return said if ratio >= goal.least else f"{said}: missed"
    return f"{said} (goal {f'at most {1 / goal.least:.3g}' if case.lasting else f'{goal.least:g}'})"
