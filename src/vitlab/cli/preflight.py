"""From a command line to the arguments for Hydra: all mistakes are shown at once, before anything starts.

parse -> Request -> syntax_problems | config_problems -> plan -> hydra_arguments
"""

import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitlab.cli import arguments, imports
from vitlab.cli import checks as cli_checks
from vitlab.cli.checks import Program, message
from vitlab.config import allowlist
from vitlab.config.overrides import swept_keys
from vitlab.config.schema import Node
from vitlab.distributed import environment
from vitlab.jobs import identity, resume
from vitlab.jobs.compose import UNSET_RUN_DIR, add_searchpath, compose, config_loader, initialize_hydra, resolve_config
from vitlab.runs.folder import write_problem
from vitlab.sweeps import checks as sweep_checks
from vitlab.sweeps import ledger


@dataclass(frozen=True)
class Request:
    """A parsed command line."""

    program: Program
    flags: Namespace  # Hydra's own
    overrides: list[Override]  # those of a resumed run come first
    options: Mapping[str | None, list[str]]  # by an override's line: those of the group that it chooses from
    added: list[str]  # overrides that are not on the command line
    problems: list[str]

    @property
    def primary(self) -> str:
        return self.flags.config_name or self.program.name

    @property
    def choices(self) -> list[tuple[Override, list[str]]]:
        """The single values of each override, as override lines."""
        pairs = [(o, arguments.spellings(o, o.input_line in self.options, self.flags.multirun)) for o in self.overrides]
        return [(override, lines) for override, lines in pairs if lines]

    @property
    def single(self) -> list[str]:
        """The overrides with one value each."""
        return [lines[0] for _, lines in self.choices]

    def sets(self, *keys: str) -> bool:
        return any(override.key_or_group in keys for override in self.overrides)


def preflight(program: Program, argv: list[str]) -> list[str]:
    """Check a command line before anything starts: exit with status 2 and all problems, or return Hydra's arguments.

    Settings that no YAML file lists (dozens of `lightning.Trainer`) get Hydra's `++`, and `resume` becomes the folder
    of the run to resume.
    """
    flags, _ = arguments.parse_arguments(argv)
    with initialize_hydra(flags):
        check_sources(program, flags)
        try:
            request = parse(program, flags)
        except HydraException as error:
            exit_with_problems(program, arguments.unreadable_overrides(flags.overrides) or [str(error)])
        if problems := request_problems(request):
            exit_with_problems(program, problems)
        added = plan(request)
        preload_job(request)
        return hydra_arguments(request, added, argv)


def check_sources(program: Program, flags: Namespace) -> None:
    """Exit with status 2 if Hydra itself, even to show help, would import or run what a file names."""
    if flags.experimental_rerun:
        remedy = "use resume=RUN, or RUN/config.yaml"
        exit_with_problems(program, [f"--experimental-rerun reads a pickle, which may run code; {remedy}"])
    file = config_loader().repository.load_config(flags.config_name or program.name)
    config = file.config if file else None  # which may add to the search path what composing would import
    folders: Any = OmegaConf.select(config, "hydra.searchpath") if isinstance(config, DictConfig) else None
    listed = OmegaConf.to_container(folders) if OmegaConf.is_config(folders) else folders
    if problems := allowlist.hydra_problems({"searchpath": listed}):
        exit_with_problems(program, problems)
    shows = [name for name in ("cfg", "info", "shell_completion", "run") if getattr(flags, name)]
    if shows and flags.multirun:
        why = "is for one run, and -m starts several; leave out -m, and give each setting one value"
        exit_with_problems(program, [f"--{shows[0]} {why}"])


def parse(program: Program, flags: Namespace) -> Request:
    """Parse the overrides. Raises `HydraException` if Hydra's grammar can't read one."""
    problems: list[str] = []
    added = resume.resumed_overrides(flags.overrides, problems)
    added += arguments.hydra_groups_of_experiments(flags.overrides)
    parser = OverridesParser.create(config_loader())
    overrides = parser.parse_overrides([*added, *flags.overrides])
    paths = [o.value() for o in overrides if o.key_or_group == "hydra.searchpath"]
    add_searchpath([str(folder) for path in paths for folder in arguments.as_list(path)])
    options = {o.input_line: names for o in overrides if (names := config_loader().get_group_options(o.key_or_group))}
    return Request(program, flags, overrides, options, added, problems)


def request_problems(request: Request) -> list[str]:
    """All problems of a parsed command line."""
    wrong = syntax_problems(request)
    right = replace(request, overrides=[o for o in request.overrides if o.input_line not in wrong])
    syntax = [problem for problems in wrong.values() for problem in problems]
    return list(dict.fromkeys([*request.problems, *syntax, *config_problems(right)]))


def syntax_problems(request: Request) -> dict[str | None, list[str]]:
    """Groups and options that don't exist, by the overrides' lines."""
    by_line = {}
    for override in request.overrides:
        options = request.options.get(override.input_line, [])
        problems = arguments.group_problems(override, options, request.program.name, request.primary)
        by_line[override.input_line] = problems or arguments.option_problems(override, options)
    return {line: problems for line, problems in by_line.items() if problems}


def config_problems(request: Request) -> list[str]:
    """Problems of the composed configurations: each value of a sweep, and the ends of a search's ranges."""
    problems: list[str] = []
    for lines in arguments.variants([lines for _, lines in request.choices]):
        problems += composed_problems(request.program, request.primary, lines, sweep=request.flags.multirun)
    if request.flags.multirun or request.sets("experiment", "hydra.mode"):
        problems += search_problems(request)
    return problems


def composed_problems(program: Program, primary: str, overrides: list[str], *, sweep: bool = False) -> list[str]:
    """Problems of the configuration that overrides compose, for a run or a job of a sweep."""
    try:
        cfg = compose(primary, overrides)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return [str(error.__cause__ or error)]
    if refused := allowlist.hydra_problems(OmegaConf.to_container(cfg.hydra)):
        return refused
    storage = OmegaConf.select(cfg, "hydra.sweeper.storage")
    # in .hydra of a single run too
    if not sweep and isinstance(storage, str) and (problem := sweep_checks.url_problem(storage)):
        return [problem]
    if any(line.lstrip("+").startswith("run_dir=") for line in overrides):
        return [f"run_dir={cfg.run_dir} can't be set: the program sets it; use hydra.run.dir={cfg.run_dir}"]
    sweep = sweep or cfg.hydra.mode == RunMode.MULTIRUN
    problems, remote = sweep_checks.launcher_problems(OmegaConf.to_container(cfg.hydra.launcher), sweep=sweep)
    return problems + cli_checks.problems(program, resolve_config(cfg, UNSET_RUN_DIR), remote=remote)


def search_problems(request: Request) -> list[str]:
    """Problems of a search: its settings, and the configurations at the ends of its ranges."""
    from vitlab.sweeps.search.space import boundary_points

    try:
        cfg = compose(request.primary, request.single)
        sweeper = OmegaConf.to_container(cfg.hydra.sweeper, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError):
        return []  # already reported
    config, loader = resolve_config(cfg, UNSET_RUN_DIR), config_loader()
    if not isinstance(sweeper, dict) or sweeper.get("_target_") not in sweep_checks.SWEEPERS:
        return []
    refused = allowlist.hydra_problems(OmegaConf.to_container(cfg.hydra))
    if refused or isinstance(config, str) or not is_multirun(request, cfg):
        return []  # already reported, or no search
    lines = [o.input_line or "" for o in request.overrides if not o.is_hydra_override()]
    parameters, problems = sweep_checks.problems({str(k): v for k, v in sweeper.items()}, lines, config, loader)
    known = {o.key_or_group for o in request.overrides if o.is_discrete_sweep()}  # each value has been checked
    for point in () if problems else boundary_points(parameters, known):
        chosen = [*request.single, *arguments.single_values(point)]
        problems = [*problems, *composed_problems(request.program, request.primary, chosen, sweep=True)]
    return problems


def is_multirun(request: Request, cfg: DictConfig) -> bool:
    return bool(request.flags.multirun or cfg.hydra.mode == RunMode.MULTIRUN)


def plan(request: Request) -> list[str]:
    """Overrides to add for a run, a resumed run, or a sweep; exits with status 2 if something prevents its start."""
    cfg = compose(request.primary, request.single)
    config = resolve_config(cfg, UNSET_RUN_DIR)
    assert isinstance(config, dict)  # or it would have been refused
    multirun = is_multirun(request, cfg)
    if environment.launched_externally(os.environ) or environment.node_from_env(os.environ):
        if not request.sets("hydra.run.dir"):
            why = "processes started by torchrun or srun need one folder, named by you"
            exit_with_problems(request.program, [f"hydra.run.dir is not set: {why}"])
        if multirun and "max_failures_per_job" in config:
            why = "-m starts several runs, and torchrun or srun the processes of one"
            exit_with_problems(request.program, [f"{why}; leave one of them out"])
    folder = "hydra.sweep.dir" if multirun else "hydra.run.dir"
    with suppress(OmegaConfBaseException):  # a folder named by what only a job knows
        if problem := write_problem(folder, Path(OmegaConf.select(cfg, folder)).absolute()):
            exit_with_problems(request.program, [problem])
    return (plan_sweep if multirun else plan_run)(request, cfg, config)


def plan_run(request: Request, cfg: DictConfig, config: Node) -> list[str]:
    added: list[str] = []
    if "max_failures_per_job" in config and config["sweep"] is not None:
        problem = f"sweep={config['sweep']} names a sweep, and this is one run; add -m, or leave it out"
        exit_with_problems(request.program, [problem])
    if config.get("resume", "") is None and environment.is_restart(os.environ):
        config = {**config, "resume": "auto"}
        added.append("resume=auto")  # a requeued job is always resumed
    if request.sets("hydra.run.dir"):
        is_first = environment.rank(os.environ) == 0
        if is_first and (problems := resume.folder_problems(config, Path(cfg.hydra.run.dir).resolve())):
            exit_with_problems(request.program, problems)
    elif config.get("resume") == "auto":
        renamed = cfg.hydra.runtime.choices.get("experiment") and not request.sets("name")  # data and model named it
        former = [compose(request.primary, [*request.single, "name=${vitlab.name:}"])] if renamed else []
        added += resume.resume_auto(config, *dict.fromkeys(Path(c.hydra.run.dir).parent for c in (cfg, *former)))
    return added


def plan_sweep(request: Request, cfg: DictConfig, config: Node) -> list[str]:
    if config.get("resume") not in (None, "auto"):
        problem = f"resume={config['resume']} names one run, and -m starts several; leave one of them out"
        exit_with_problems(request.program, [problem])
    if "max_failures_per_job" not in config:  # without a ledger
        return []
    if request.sets("hydra.sweep.subdir"):
        why = "a sweep finds its jobs again by the names of their folders"
        exit_with_problems(request.program, [f"hydra.sweep.subdir can't be set: {why}"])
    name, folder = sweep_name(request, cfg, config)
    if cancelled := ledger.reopen_problem(folder):
        exit_with_problems(request.program, [cancelled])
    return [f"sweep={name}"] if config["sweep"] is None else []


def sweep_name(request: Request, cfg: DictConfig, config: Node) -> tuple[str, Path]:
    """A sweep's name and folder; without a name, the same command must give the same ones."""
    lines, sweeper = [o.input_line or "" for o in request.overrides], cfg.hydra.sweeper
    name, given = config["sweep"], request.sets("hydra.sweep.dir")
    if name is None and given:
        name = identity.slugify(Path(cfg.hydra.sweep.dir).name)
    elif name is None:
        varies = swept_keys(lines, sweeper.get("params"))
        name = identity.sweep_name(identity.sweep_subject(config, varies), lines, varies, str(sweeper._target_))
    return name, Path(cfg.hydra.sweep.dir) if given else ledger.SWEEPS / name


def hydra_arguments(request: Request, planned: list[str], argv: list[str]) -> list[str]:
    """The arguments for Hydra."""
    groups = [lines[0] for override, lines in request.choices if override.input_line in request.options]
    values = [o for o in request.overrides if o.input_line not in request.options and not o.is_hydra_override()]
    listed = compose(request.primary, groups if values else request.single)  # composed before, where all are groups
    unlisted = {o.input_line for o in values if arguments.is_unlisted(o, listed)}
    line = [f"++{argument}" if argument in unlisted else argument for argument in argv]
    first = argv.index(request.flags.overrides[0]) if request.flags.overrides else len(argv)
    quiet = ["hydra.output_subdir=null"] if environment.rank(os.environ) else []  # rank 0 writes it
    return [*line[:first], *request.added, *planned, *line[first:], *quiet]


def preload_job(request: Request) -> None:
    """Import what a run in this process needs."""
    cfg = compose(request.primary, request.single)
    if not is_multirun(request, cfg) and cfg.get("trainer") and cfg.trainer.get("devices") in (None, 1):
        imports.print_importing(request.program.name)
        imports.preload({key: OmegaConf.to_container(cfg[key]) for key in ("logger", "trainer") if cfg.get(key)})


def exit_with_problems(program: Program, problems: list[str]) -> NoReturn:
    """Show the problems and end the program with status 2, the status of a wrong command line."""
    print(message(program.name, problems), file=sys.stderr)
    sys.exit(2)
