"""The benchmark itself: part after part, told as it is measured, written after each case."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from vitlab.benchmarking import machine, results
from vitlab.benchmarking.timing import Case, Clock, Part
from vitlab.schema import Node

log = logging.getLogger(__name__)


def run(parts: Mapping[str, Part], clock: Clock, folder: Path) -> Node:
    """Returns how many goals were reached and missed."""
    title, cases = machine.described(clock), list[Case]()
    log.info("%s", title)
    for name, part in parts.items():
        begun = time.monotonic()
        for case in part.cases(clock):
            cases.append(case)
            results.write(cases, folder, title=title)
            log.info("%s", line(case))
        part.draw([case for case in cases if case.part == name], folder)
        log.info("%s: %.0f s", name, time.monotonic() - begun)
    if not cases:
        log.info("nothing was measured")
        return {"cases": 0, "goals reached": 0, "goals missed": 0}
    outcomes = [outcome for case in cases for outcome in case.outcomes()]
    reached = sum(ratio >= goal.least for goal, _, ratio in outcomes)
    log.info("goals: %d of %d reached; %s", reached, len(outcomes), folder / "benchmark.md")
    return {"cases": len(cases), "goals reached": reached, "goals missed": len(outcomes) - reached}


def line(case: Case) -> str:
    """A case in a line: everybody's items a second, then ours against the fastest."""
    rates = "   ".join(f"{measured.name} {measured.rate:,.4g}" for measured in case.measured)
    goals = "".join(f"   {ratio:.2f} x {rival} (goal {goal.least:g})" for goal, rival, ratio in case.outcomes())
    return f"{case.part}: {case.name}   {rates} {case.unit}/s{goals}"
