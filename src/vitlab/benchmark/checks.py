"""What is wrong with the settings of a benchmark, beyond their types, before anything is measured."""

from collections.abc import Sequence
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from vitlab.benchmark import machine
from vitlab.cli import arguments
from vitlab.cli import checks as cli_checks
from vitlab.cli.program import Program
from vitlab.config.schema import Node, resolve, suggest
from vitlab.jobs import compose


def problems(read: Any) -> list[str]:
    """`read` returns a value by its dotted path, or None (`reader.Reader`)."""
    parts = read("parts", list[str])
    if parts is None:  # another program
        return []
    found = []
    if not parts or len(set(parts)) < len(parts):
        found.append(f"parts={parts} must name at least one part, and each once")
    settings: Node = {"rounds": 1, "seconds": 0.0, "threads": None, "accelerator": "auto"}
    try:
        machine.clock(**{key: default if read(key) is None else read(key) for key, default in settings.items()})
    except ValueError as error:
        found += str(error).splitlines()
    return found + [problem for part in parts for problem in part_problems(part, read)]


def part_problems(part: str, read: Any) -> list[str]:
    """What a part's constructor refuses; if nothing, what `train.py` would refuse of a run that it starts."""
    node = read(part, dict) or {}
    if "_target_" not in node or f"{part}._target_" in read.bad:
        return []
    bad = {path.split(".")[1] for path in read.bad if path.startswith(f"{part}.")}
    settings = {key: value for key, value in node.items() if not key.startswith("_") and key not in bad}
    device = "cuda" if torch.cuda.is_available() and read("accelerator", str) != "cpu" else "cpu"
    try:
        runs = resolve(str(node["_target_"]))(**settings).runs(device)
        for lines in runs.values() if not bad else ():
            train_config(lines)
    except ValueError as error:
        return [line if line.startswith(part) else f"{part}: {line}" for line in str(error).splitlines()]
    return []


def train_config(lines: Sequence[str], run_dir: str = compose.UNSET_RUN_DIR) -> Node:
    """What `train.py` is given for these settings. Raises `ValueError`, a line for each problem."""
    with compose.ensure_hydra():
        try:
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())
            overrides = [(o, bool(arguments.group_options(o))) for o in parser.parse_overrides([*lines])]
            spelled = [line for o, is_group in overrides for line in arguments.spellings(o, is_group, False)]
            config = compose.resolve_config(compose.compose("train", spelled), run_dir)
            known = [str(key) for key in compose.compose("train", [])]
        except HydraException as error:
            raise ValueError(f"train.py refuses {str(error).splitlines()[0]}") from error
        keys = [o.key_or_group.partition(".")[0] for o, is_group in overrides if not is_group]
        found = [f"{key}: there is no such setting{suggest(key, known)}" for key in keys if key not in known]
        found = found or cli_checks.problems(Program("train", lambda **settings: settings), config)
    if found or isinstance(config, str):
        raise ValueError("\n".join(f"train.py refuses {problem.splitlines()[0]}" for problem in found))
    return config
