"""The goals: limits of vitlab's costs relative to a rival's, in seconds or in a figure such as peak memory."""

from dataclasses import dataclass

from benchmark.case import OURS, Case
from benchmark.timing import Measurement

SECONDS = "seconds"


@dataclass(frozen=True)
class Goal:
    """most   ratio to the rival's cost of an item
    rival  None: the peer with the smallest cost
    case   prefix of the cases' names
    """

    part: str
    most: float
    rival: str | None = None
    figure: str = SECONDS
    case: str = ""

    def outcome(self, case: Case) -> tuple[bool, str] | None:
        """Whether the goal is reached, and a line; None for another part's case and without the rival or figure."""
        if self.part != case.part or not case.name.startswith(self.case):
            return None
        costs = {m.name: self.cost(m) for m in case.measured if m.peer and m.name in (OURS, self.rival or m.name)}
        rivals = {name: value for name, value in costs.items() if value and name != OURS}
        ours, rival = costs.get(OURS), min(rivals, key=lambda name: rivals[name], default=None)
        if ours is None or rival is None:
            return None
        ratio = ours / rivals[rival]
        goal = f"goal: at most {self.most:g}{', missed' if ratio > self.most else ''}"
        return ratio <= self.most, f"{self.figure} {ratio:.2f} x {rival} ({goal})"

    def cost(self, measurement: Measurement) -> float | None:
        return 1 / measurement.rate if self.figure == SECONDS else measurement.figures.get(self.figure)


GOALS = (
    Goal("networks", 1.0),
    Goal("networks", 1.0, "timm", "peak MB"),
    Goal("training", 1.03, "bare loop"),
    Goal("loading", 0.1, case="in memory"),
    Goal("loading", 0.5, "torchvision, PIL", "CPU ms an image", case="JPEG"),
    Goal("start", 1.3, "import torch, lightning, timm", case="first step"),
    Goal("start", 3.0, "import hydra", "CPU seconds", case="--help"),
)


def outcomes(case: Case) -> list[tuple[bool, str]]:
    return [outcome for goal in GOALS if (outcome := goal.outcome(case))]
