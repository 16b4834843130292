"""The report of a load: what became of each tensor, in one table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vitlab.weights.preprocessing import Preprocessing

SHOWN = 6  # names that a line shows


@dataclass
class Report:
    """What became of the tensors."""

    title: str
    matched: list[str] = field(default_factory=list)
    numbers: int = 0  # in all that were matched or resampled
    resampled: dict[str, str] = field(default_factory=dict)  # our name -> from what, to what
    anew: dict[str, str] = field(default_factory=dict)  # our name -> why
    unused: dict[str, str] = field(default_factory=dict)  # name in the file -> why
    prepared: Preprocessing = field(default_factory=Preprocessing)  # how images were, as far as that is known
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # what is not explained: refused unless strict is off

    def table(self) -> str:
        """All of it, a line for each kind and reason."""
        lines = [self.title, f"  matched      {len(self.matched)} tensors as they are; {self.numbers:,} numbers in all"]
        for kind, entries in (
            ("resampled", [f"{name}: {how}" for name, how in self.resampled.items()]),
            ("anew", names_by_reason(self.anew)),
            ("unused", names_by_reason(self.unused)),
        ):
            lines += [f"  {kind:<12} {entry}" for entry in entries or ["none"]]
        return "\n".join([*lines, *(f"  note         {note}" for note in [*self.notes, *self.problems])])


def format_grid(sizes: Iterable[int]) -> str:
    """`14x14`."""
    return "x".join(map(str, sizes))


def format_names(names: Iterable[str]) -> str:
    """The first of many names."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def names_by_reason(entries: Mapping[str, str]) -> list[str]:
    """Names by the reason that they share."""
    grouped: dict[str, list[str]] = {}
    for name, why in entries.items():
        grouped.setdefault(why, []).append(name)
    return [f"{format_names(names)}: {why}" for why, names in grouped.items()]
