"""The report of loaded weights: the source of every tensor."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vitlab.config.printable import format_names
from vitlab.weights.preprocessing import Preprocessing


@dataclass
class Report:
    """The source of every tensor of a model, and the use of every tensor of a file."""

    title: str
    matched: list[str] = field(default_factory=list)
    numbers: int = 0  # in all tensors that were matched or resampled
    resampled: dict[str, str] = field(default_factory=dict)  # our name -> the change
    new: dict[str, str] = field(default_factory=dict)  # our name of a newly initialized tensor -> the reason
    unused: dict[str, str] = field(default_factory=dict)  # name in the file -> the reason
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # errors if the load is strict

    def table(self) -> str:
        """A line for each kind and reason."""
        lines = [self.title, f"  matched      {len(self.matched)} tensors as they are; {self.numbers:,} numbers in all"]
        for kind, entries in (
            ("resampled", [f"{name}: {how}" for name, how in self.resampled.items()]),
            ("new", names_by_reason(self.new)),
            ("unused", names_by_reason(self.unused)),
            ("note", [*self.notes, *self.problems]),
        ):
            lines += [f"  {kind:<12} {entry}" for entry in entries or (["none"] if kind != "note" else [])]
        return "\n".join(lines)


def format_grid(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def names_by_reason(entries: Mapping[str, str]) -> list[str]:
    grouped: dict[str, list[str]] = {}
    for name, why in entries.items():
        grouped.setdefault(why, []).append(name)
    return [f"{format_names(names)}: {why}" for why, names in grouped.items()]
