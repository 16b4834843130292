"""Check the settings of a benchmark, and of the runs of `train.py` that it starts."""

from collections.abc import Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from vitlab.cli import arguments
from vitlab.cli import checks as cli_checks
from vitlab.cli.program import Program
from vitlab.config.schema import Node, resolve, suggest
from vitlab.config.view import ConfigView
from vitlab.jobs import compose


def benchmark_problems(read: ConfigView) -> Iterator[str]:
    import torch

    parts, accelerator, gpu = read("parts", list[str]), read("accelerator", str), torch.cuda.is_available()
    if parts is None:
        return
    if not parts or len(set(parts)) < len(parts):
        yield f"parts={parts} must name at least one part, and each once"
    if accelerator == "gpu" and not gpu:
        yield "accelerator=gpu: torch finds no GPU; use accelerator=cpu, or auto"
    for part in parts:
        yield from part_problems(part, read, "cuda" if gpu and accelerator != "cpu" else "cpu")


def part_problems(part: str, read: ConfigView, device: str) -> list[str]:
    """Problems of a part's settings; without any, those that `train.py` finds in the runs that it starts."""
    node = read(part, dict) or {}
    if "_target_" not in node or f"{part}._target_" in read.bad:
        return []
    bad = {path.split(".")[1] for path in read.bad if path.startswith(f"{part}.")}
    settings = {key: value for key, value in node.items() if not key.startswith("_") and key not in bad}
    try:
        runs = resolve(str(node["_target_"]))(**settings).runs(device)
        for lines in runs.values() if not bad else ():
            train_config(lines)
    except ValueError as error:
        return [line if line.startswith(part) else f"{part}: {line}" for line in str(error).splitlines()]
    return []


def train_config(lines: Sequence[str], run_dir: str = compose.UNSET_RUN_DIR) -> Node:
    """The configuration of `train.py` with these settings. Raises `ValueError`, a line for each problem."""
    with compose.ensure_hydra():
        try:
            parser = OverridesParser.create(compose.config_loader())
            overrides = [(o, bool(arguments.group_options(o))) for o in parser.parse_overrides([*lines])]
            spelled = [line for o, is_group in overrides for line in arguments.spellings(o, is_group, False)]
            config = compose.resolve_config(compose.compose("train", spelled), run_dir)
            known = [str(key) for key in compose.compose("train", [])]
        except HydraException as error:
            raise ValueError(f"train.py refuses {str(error).splitlines()[0]}") from error
        keys = [o.key_or_group.partition(".")[0] for o, is_group in overrides if not is_group]
        problems = [f"{key}: there is no such setting{suggest(key, known)}" for key in keys if key not in known]
        problems = problems or cli_checks.problems(Program("train", lambda **settings: settings), config)
    if problems or isinstance(config, str):
        raise ValueError("\n".join(f"train.py refuses {problem.splitlines()[0]}" for problem in problems))
    return config
