"""The settings and groups of a program, with types, values and explanations, as `--help` shows them.

The explanation of a setting is its line in the docstring of the class or function that has it as an argument.
"""

import ast
import difflib
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitlab.cli.arguments import visible_options
from vitlab.cli.checks import CALLED, SUPPLIED, TAKEN, Program
from vitlab.config import allowlist, docstrings
from vitlab.config.bounds import format_type
from vitlab.config.schema import format_value, parameters
from vitlab.jobs.compose import compose, config_loader

OTHER_GROUPS = {
    "experiment": "A recipe: it takes precedence over the groups, the command line over it.",
    "hydra/launcher": "Where the jobs of a sweep run.",
    "hydra/sweeper": "How a sweep chooses its jobs.",
}


@dataclass(frozen=True)
class Setting:
    """A key with its type and bounds in words, its value as text, and its explanation."""

    path: str
    kind: str
    value: str
    line: str


class ProgramSettings:
    """What `--help` shows of a program, with the values that overrides compose."""

    def __init__(self, program: Program, primary: str, overrides: list[str]) -> None:
        self.function = program.function
        self.lines = docstrings.parse_arguments(inspect.getdoc(program.function) or "")
        self.cfg = compose(primary, overrides)
        self.groups = {name: visible_options(name) for name in group_names(self.cfg, parameters(self.function))}
        self.missing = fill_missing(self.cfg)

    def root(self) -> Iterator[Setting]:
        """The settings that are in no group."""
        for name, parameter in parameters(self.function).items():
            if name not in self.groups:
                target = self.target(name)
                kind = f"a mapping, see --help {name}" if target else format_type(parameter.annotation, bounds=True)
                value = "required" if name in self.missing else target or value_text(self.value(name))
                yield Setting(name, kind, value, self.line(name))

    def line(self, name: str) -> str:
        """The explanation of a root setting or a group."""
        return in_yaml(self.lines.get(name) or OTHER_GROUPS.get(name, ""))

    def choice(self, group: str) -> str:
        """The chosen option of a group, or options (of `logger`, which Hydra doesn't record)."""
        chosen, value = self.cfg.hydra.runtime.choices, self.value(group)
        listed = value if group not in chosen and isinstance(value, dict) else [chosen.get(group) or "null"]
        return ", ".join(map(str, listed))

    def value(self, path: str) -> Any:
        """A resolved value as plain data; None if something that it refers to can't be resolved."""
        try:
            value = OmegaConf.select(self.cfg, path)
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except (OmegaConfBaseException, ValueError):
            return None

    def target(self, path: str) -> str | None:
        """What the settings of a node are arguments of; None if a configuration may not call it."""
        value = self.value(path)
        target = value.get("_target_", CALLED.get(path)) if isinstance(value, dict) else None
        is_allowed = isinstance(target, str) and (path in CALLED or allowlist.refusal(target) is None)
        return target if is_allowed else None

    def nodes(self, path: str) -> dict[str, str]:
        """The node with a target at a path, or those in it (callbacks, loggers), with their targets."""
        if target := self.target(path):
            return {path: target}
        value = self.value(path)
        inner = [f"{path}.{name}" for name in value] if isinstance(value, dict) else []
        return {node: target for node in inner if (target := self.target(node))}

    def of_node(self, path: str, target: str) -> Iterator[Setting]:
        """The settings of a node: the arguments of its target that the program doesn't pass itself."""
        node, lines, supplied = self.value(path), docstrings.argument_lines(target), SUPPLIED.get(path, ())
        for name, parameter in parameters(target).items():
            where, is_open = f"{path}.{name}", parameter.kind is inspect.Parameter.VAR_KEYWORD
            if is_open or where in TAKEN or name in supplied:
                continue
            value = node[name] if name in node else default_value(parameter.default)
            if isinstance(value, dict) and "_target_" in value:
                value = f"{value['_target_']}, see --help {where}"
            kind, line = format_type(parameter.annotation, bounds=True), in_yaml(lines.get(name, ""))
            yield Setting(where, kind, "required" if value == "???" else value_text(value), line)

    def all(self) -> Iterator[Setting]:
        """Every setting at any depth."""
        yield from self.root()
        paths = [str(key) for key in self.cfg if key != "hydra"]
        for path in paths:  # grows
            value = self.value(path)
            if isinstance(value, dict):
                paths += [f"{path}.{key}" for key, inner in value.items() if isinstance(inner, dict)]
                if target := self.target(path):
                    yield from self.of_node(path, target)

    def closest(self, name: str) -> list[str]:
        """The groups and settings whose paths, or whose last parts, are like a name."""
        paths = dict.fromkeys([*self.groups, *(setting.path for setting in self.all())])
        ends: dict[str, str] = {}
        for path in paths:
            ends.setdefault(re.split(r"[./]", path)[-1], path)
        similar = difflib.get_close_matches(name, ends)
        exact = [ends[end] for end in similar if end == name]
        return list(dict.fromkeys([*exact, *difflib.get_close_matches(name, paths), *(ends[end] for end in similar)]))


def group_names(cfg: DictConfig, names: Iterable[str]) -> list[str]:
    """The groups among the root keys of a program, with those inside them, and Hydra's if the program can sweep."""
    loader = config_loader()
    groups = [name for name in names if loader.get_group_options(name)]
    groups += ["experiment"] if "experiment" in cfg.hydra.runtime.choices else []
    groups += ["hydra/launcher", "hydra/sweeper"] if "max_failures_per_job" in cfg else []
    for index, name in enumerate(groups):  # grows
        inner = loader.repository.get_group_options(name, ObjectType.GROUP)
        groups[index + 1 : index + 1] = [f"{name}/{group}" for group in inner]
    return groups


def fill_missing(cfg: DictConfig) -> set[str]:
    """Set required root keys to their names in capitals, `run_dir` to its pattern; returns the required keys."""
    OmegaConf.set_struct(cfg, False)
    raw: Any = OmegaConf.to_container(cfg)  # unresolved
    missing = {key for key, value in raw.items() if value == "???" and key != "run_dir"}
    computed = [key for key, value in raw.items() if isinstance(value, str) and "${" in value]
    if "run_dir" in raw:
        text = raw["hydra"]["run"]["dir"]
        for key in (*missing, *computed):
            text = text.replace(f"${{{key}}}", key.upper())
        cfg.run_dir = re.sub(r"\$\{now:[^}]*\}", "STAMP", text)
    for key in missing:
        cfg[key] = key.upper()
    return missing


def default_value(default: Any) -> Any:
    """The default of a parameter as plain data, or as its source; `required` if there is none."""
    if default is inspect.Parameter.empty:
        return "required"
    if not isinstance(default, ast.expr):
        return default
    try:
        return ast.literal_eval(default)
    except ValueError:
        return ast.unparse(default)


def value_text(value: Any) -> str:
    """A value in YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {value_text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_text, value))}]"
    return value or "''" if isinstance(value, str) else format_value(value)


def in_yaml(line: str) -> str:
    """An explanation with constants as a command line has them."""
    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        line = re.sub(rf"\b{python}\b", yaml, line)
    return line
