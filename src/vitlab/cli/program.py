"""The type of a program: a function with a name and a rule."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vitlab.config.printable import printable
from vitlab.config.view import ConfigView
from vitlab.jobs.run import Function

Rule = Callable[[ConfigView], Iterable[str]]  # yields the problems of a configuration, a line each


def no_problems(view: ConfigView) -> Iterable[str]:
    """The rule of a program without one."""
    return ()


@dataclass(frozen=True)
class Program:
    """A program: its name (and that of its file in `conf`), its function, and the rule for its own settings."""

    name: str
    function: Function
    check: Rule = no_problems


def message(name: str, problems: list[str]) -> str:
    """All problems of a configuration, a line each."""
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    lines = [f"{name}: {count} in the configuration; nothing was started.", *(f"  - {p}" for p in problems)]
    return printable("\n".join(lines))
