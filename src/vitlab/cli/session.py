"""`vitlab.compose` and `vitlab.train`: what `python src/train.py` does, from Python."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from vitlab.cli import register
from vitlab.cli.checks import message
from vitlab.cli.command import Command
from vitlab.cli.preflight import parse, request_problems
from vitlab.config import paths
from vitlab.config.schema import Node
from vitlab.distributed import launch
from vitlab.jobs.compose import compose as compose_config
from vitlab.jobs.compose import ensure_hydra, resolve_config
from vitlab.jobs.run import start_job
from vitlab.runs import folder


def compose(overrides: Sequence[str] = (), *, run_dir: str | Path | None = None) -> Node:
    """The configuration of a training, as plain data, with a command line's checks; `ValueError` has all problems.

    Args:
        overrides: As on the command line of train.py: `["model=vit_s16", "data=cifar10"]`.
        run_dir: The run folder; None: a new one, as train.py names it.
    """
    register.register()
    program, flags = training(), Namespace(overrides=[*overrides], config_name=None, multirun=False)
    with ensure_hydra():
        request = parse(program, flags)
        if problems := request_problems(request):
            raise ValueError(message("train", problems))
        cfg = compose_config("train", request.single)
        config = resolve_config(cfg, str(Path(run_dir or cfg.hydra.run.dir).absolute()))
    assert isinstance(config, dict)
    return config


def train(config: Node | Sequence[str] = (), *, run_dir: str | Path | None = None) -> Node:
    """Train with a configuration, or with overrides; the content of the run's results.json.

    Several devices are processes of their own. Raises `RuntimeError` if the training fails; its log has the reason.
    """
    if not isinstance(config, dict):
        config = compose(config, run_dir=run_dir)
    config = {**config, "run_dir": str(Path(run_dir or config["run_dir"]).absolute())}
    program, where = training(), Path(config["run_dir"])
    if not paths.IN_WHEEL:
        launch.export_pythonpath(paths.PROGRAMS)  # for the processes of several devices
    folder.write_config(where, config)
    try:
        start_job(program.name, program.run, program.entry, config, sweep=False)
    except SystemExit as end:
        raise RuntimeError(f"the training ended with status {end.code}: see {where / 'train.log'}") from end
    return folder.read_results(where)


def training() -> Command:
    """The program train.py, wherever it is installed."""
    name = "vitlab_train"  # the user's own module may be called train
    if name not in sys.modules:
        spec = spec_from_file_location(name, paths.PROGRAMS / "train.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    program: Command = sys.modules[name].main
    return program
