"""Overrides in Hydra's grammar: options of groups, values, and the values of a sweep."""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from hydra._internal.utils import get_args_parser
from hydra.core.default_element import ConfigDefault, GroupDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from vitlab.config.guesses import advice, without_dashes
from vitlab.config.overrides import hydra_quote
from vitlab.config.schema import suggest
from vitlab.jobs.compose import config_loader
from vitlab.jobs.run import Function
from vitlab.runs.folder import list_runs

MANY = 32  # values of one setting, each of which is checked before a sweep starts


def parse_arguments(argv: list[str]) -> tuple[Namespace, bool]:
    """Parse a command line as Hydra does. Also returns whether it only asks for help or for the configuration."""
    flags = get_args_parser().parse_args(argv)
    asks = any(getattr(flags, flag) for flag in ("help", "hydra_help", "cfg", "info", "shell_completion"))
    return flags, asks and not flags.experimental_rerun  # which Hydra looks at first


def plain_arguments(argv: list[str]) -> list[str]:
    """A command line in Hydra's grammar: `--key value` becomes `key=value`, and `last` the path of the newest run."""
    line = without_dashes(argv, set(get_args_parser()._option_string_actions))
    flags = [word for word in line if word in ("-m", "--multirun")]  # argparse accepts it at the ends alone
    line = [*flags, *(word for word in line if word not in flags)]
    newest = {f"{key}=last": key for key in ("run", "resume")}
    if not newest.keys() & set(line) or not (runs := list_runs(Path("runs"))):
        return line
    return [f"{newest[argument]}={hydra_quote(runs[-1])}" if argument in newest else argument for argument in line]


def with_action(argv: list[str], function: Function) -> list[str]:
    """A command line with `action=status` for `status`, if that is an action of the function."""
    actions = get_args(function.__annotations__.get("action"))
    return [f"action={word}" if word in actions else word for word in argv]


def unreadable_overrides(overrides: list[str]) -> list[str]:
    """Problems of the overrides that Hydra's grammar can't read."""
    lines = []
    for line in overrides:
        if not (problem := grammar_problem(line)):
            continue
        key, equals, value = line.partition("=")
        remedy = f"Hydra says: {problem}"
        if not equals:
            runs = f", and a run is resume={line} or run={line}" if "/" in line else ""
            remedy = f"a setting has a value: {'KEY' if runs else key}=VALUE{runs}"
        elif line.strip() == "=" or key != key.strip():
            remedy = "leave out the spaces around =: KEY=VALUE"
        elif not value.startswith(("[", "{")) and not grammar_problem(f"{key}='{value}'"):
            remedy = f"quote the value, for Hydra and for the shell: \"{key}='{value}'\""
        if value.startswith("[") and value.endswith("]") and "=" in value and not {"'", '"'} & set(value):
            entries = ",".join(f"'{entry.strip()}'" for entry in value[1:-1].split(","))
            remedy = f'settings within a list are quoted, and all of it is for the shell: "{key}=[{entries}]"'
        lines.append(f"{line} can't be read; {remedy}")
    return lines


def grammar_problem(override: str) -> str | None:
    """Why Hydra's grammar can't read an override; None if it can."""
    try:
        OverridesParser.create().parse_override(override)
    except HydraException as error:
        return str(error).splitlines()[0]
    return None


def hydra_groups_of_experiments(overrides: list[str]) -> list[str]:
    """The options of Hydra's groups that an experiment sets (`override /hydra/sweeper: optuna`), as overrides.

    In Hydra, the primary file takes precedence over a file that it includes.
    """
    parsed = {o.key_or_group: o for o in OverridesParser.create().parse_overrides(overrides)}
    added = []
    for name in as_list(parsed["experiment"].value()) if "experiment" in parsed else []:
        file = config_loader().repository.load_config(f"experiment/{name}") if isinstance(name, str) else None
        for default in file.defaults_list or [] if file else []:
            if default.is_override() and isinstance(default, GroupDefault):
                group = (default.group or "").lstrip("/")
                if group.startswith("hydra/") and group not in parsed:
                    added.append(f"{group}={default.value}")
    return added


def visible_options(group: str) -> list[str]:
    """The options of a group, without those that others are made of."""
    names = config_loader().get_group_options(group)
    return [name for name in names if not name.endswith("signature") and f"{group}/{name}" != "data/base"]


def group_problems(override: Override, options: list[str], name: str, primary: str) -> list[str]:
    """Report a group that the program doesn't have; Hydra's own error advises to add it.

    A primary file that includes another may have any group of that file.
    """
    key = override.key_or_group
    plain = not (override.is_add() or override.is_force_add() or override.is_delete())
    if not options or not plain or key.startswith("hydra/"):
        return []
    file = config_loader().repository.load_config(primary)
    defaults = file.defaults_list or [] if file else []
    if any(isinstance(default, ConfigDefault) and not default.is_self() for default in defaults):
        return []
    chosen = [default for default in defaults if isinstance(default, GroupDefault) and not default.is_override()]
    groups = sorted((default.group or "").lstrip("/") for default in chosen)
    if key.partition("/")[0] in groups:
        return []
    there = f"it has {', '.join(groups)}" if groups else "it has none"
    return [f"{override.input_line}: {name}.py has no group {key} ({there}); leave it out"]


def option_problems(override: Override, options: list[str]) -> list[str]:
    """Report chosen options that don't exist; `options` is empty for an override that chooses from no group."""
    if not options:
        return []
    chosen = as_list(override.value())
    if override.is_sweep_override():
        chosen = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
    lines, known = [], ", ".join(visible_options(override.key_or_group))
    for option in (str(value) for value in chosen if isinstance(value, str | int)):
        if option not in options and "*" not in option:
            guess = advice(line := f"{override.key_or_group}={option}")
            hint = suggest(option, options) or (f"; {guess}" if guess else "")
            lines.append(f"{line}: there is no such option{hint} (of {known})")
    return lines


def spellings(override: Override, is_group: bool, multirun: bool) -> list[str]:
    """The single values of an override, written so that composing never fails on an unknown key.

    Hydra would report only the first unknown key. Ranges of a search (`interval(...)`) have no values yet: each job is
    checked again when it starts.
    """
    line = override.input_line or ""
    if override.is_sweep_override() and multirun:
        values = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
        return [f"{'' if is_group else '++'}{override.key_or_group}={value}" for value in values]
    if is_group or override.is_delete() or override.is_hydra_override() or override.is_sweep_override():
        return [line]
    return ["++" + line.lstrip("+")]


def single_values(lines: list[str], *, multirun: bool = False) -> list[str]:
    """One value of each override, written so that composing never fails on an unknown key."""
    loader = config_loader()
    overrides = OverridesParser.create(loader).parse_overrides(lines)
    values = [spellings(o, bool(loader.get_group_options(o.key_or_group)), multirun) for o in overrides]
    return [of_override[0] for of_override in values if of_override]


def is_unlisted(override: Override, listed: DictConfig) -> bool:
    """Whether a plain `key=value` has a key that is not in the composed files."""
    plain = not (override.is_add() or override.is_force_add() or override.is_delete())
    parent, _, key = override.key_or_group.rpartition(".")
    holder = OmegaConf.select(listed, parent) if parent else listed
    is_listed = OmegaConf.is_dict(holder) and key in holder.keys()  # noqa: SIM118 (`in` overlooks what is ???)
    return plain and not is_listed and not override.is_hydra_override()


def variants(choices: list[list[str]]) -> Iterator[list[str]]:
    """Command lines that together have every value of a sweep: the first job, then one for each other value.

    Of many numbers (`seed=range(0,1000)`) these are the first, the smallest and the largest.
    """
    first = [c[0] for c in choices]
    yield first
    for i, values in enumerate(choices):
        for value in without_inner_numbers(values[1:]):
            yield [*first[:i], value, *first[i + 1 :]]


def without_inner_numbers(lines: list[str]) -> list[str]:
    """Lines `key=value`, of more than `MANY` without the numbers between the smallest and the largest."""
    numbers = dict[str, float]()
    for line in lines if len(lines) > MANY else ():
        with suppress(ValueError):
            numbers[line] = float(line.partition("=")[2])
    ends = {min(numbers, key=numbers.__getitem__), max(numbers, key=numbers.__getitem__)} if numbers else set()
    return [line for line in lines if line not in numbers or line in ends]


def as_list(value: Any) -> list[Any]:
    """A value as a list."""
    return value if isinstance(value, list) else [value]
