"""The type of a program: a function with a name and a rule."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vitlab.config import docstrings
from vitlab.config.printable import printable
from vitlab.config.view import ConfigView
from vitlab.jobs.run import Function

Rule = Callable[[ConfigView], Iterable[str]]  # yields the problems of a configuration, a line each


@dataclass(frozen=True)
class Program:
    """A program: its name (and that of its file in `conf`), its function, and the rule for its own settings.

    `absent` are the training's "devices" or "data" that a program needn't have: without devices it is one process.
    """

    name: str
    function: Function
    check: Rule = lambda view: ()
    absent: tuple[str, ...] = ()


def with_settings_of(program: Program, *, without: Iterable[str]) -> Callable[[Function], Function]:
    """Give a function that takes `**settings` those of another program, with their types and explanations."""
    theirs = inspect.signature(program.function)
    lines = docstrings.parse_arguments(inspect.getdoc(program.function) or "")

    def extend(function: Function) -> Function:
        own: Any = inspect.signature(function)
        named = {name: p for name, p in own.parameters.items() if p.kind is not p.VAR_KEYWORD}
        added = {name: p for name, p in theirs.parameters.items() if name not in {*without, *named}}
        function.__signature__ = own.replace(parameters=[*named.values(), *added.values()])  # type: ignore[attr-defined]
        function.__annotations__ |= {name: p.annotation for name, p in added.items()}
        shared = (f"    {name}: {lines[name]}" for name in added)
        function.__doc__ = "\n".join([inspect.getdoc(function) or "", *shared])
        return function

    return extend


def message(name: str, problems: list[str]) -> str:
    """All problems of a configuration, a line each."""
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    lines = [f"{name}: {count} in the configuration; nothing was started.", *(f"  - {p}" for p in problems)]
    return printable("\n".join(lines))
