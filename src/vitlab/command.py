"""`@command(NAME)`: a function with a typed signature becomes a program configured by `conf/NAME.yaml`.

command line -> preflight: compose leniently, check everything, show all problems at once, or go on
             -> Hydra: compose, run or sweep, make the run folder
             -> job: one device in this process; several devices, or a sweep's job, in processes of their own
             -> function(**configuration), its results in `results.json`, its objective to the sweeper
"""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitlab import (
    claiming,
    grammar,
    identity,
    importing,
    jobs,
    launch,
    launchers,
    ledger,
    progress,
    resolvers,
    runs,
    signatures,
    stopping,
    trust,
)
from vitlab.config import paths
from vitlab.data.source import loader_facts
from vitlab.data.storage import is_remote
from vitlab.jobs import Function
from vitlab.schema import Node
from vitlab.stopping import Stopped
from vitlab.weights.composing import completed

CONF = paths.CONF
UNSET_RUN_DIR = "runs"  # stands for the run folder while the configuration is only being checked

_composed: ContextVar[dict[tuple[str, ...], DictConfig]] = ContextVar("composed")  # in the preflight

resolvers.register_resolvers()  # here: some launchers' workers import this, and then ask for a job's folder


def command(name: str) -> Callable[[Function], Callable[[], None]]:
    """Makes a program of a function. Its keyword parameters are the root keys of `conf/NAME.yaml`.

    The function returns its results, a mapping that holds the value of the configuration's `objective`, if any.
    """

    def wrap(function: Function) -> Callable[[], None]:
        entry = Path(sys.modules[function.__module__].__file__ or "").resolve()

        def job(cfg: DictConfig) -> float | None:
            return run_job(name, function, entry, cfg)

        @wraps(function)
        def program() -> None:
            if "--version" in sys.argv[1:]:  # Hydra's parser would print Hydra's
                print(f"vitlab {paths.version()}", file=sys.stdout)
                return
            if run_dir := os.environ.pop(launch.RUN_VARIABLE, None):
                if parent := os.environ.pop(launch.PARENT_VARIABLE, None):
                    launch.end_with(int(parent))
                config = runs.read_config(Path(run_dir))
                with importing.uncollected():
                    importing.ahead(config)
                jobs.run_recorded(name, function, Path(run_dir), config)
                return
            if not paths.IN_WHEEL:
                launch.make_importable(paths.PROGRAMS)
            with importing.uncollected():
                signatures.register()
                sys.argv[1:] = preflight(name, function, sys.argv[1:])
            try:
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)()
            except Stopped as stop:  # a sweep, between two jobs
                sys.exit(stopping.STATUS[stop.outcome])
            finally:
                progress.end()

        return program

    return wrap


# ---------------------------------------------------------------------------------------------------- preflight


def preflight(name: str, function: Function, argv: list[str]) -> list[str]:
    """Checks a command line before anything starts; exits with status 2 and every problem, or returns it.

    Returned are the arguments for Hydra: settings that exist but that no YAML file lists (there are dozens in
    `lightning.Trainer`) get Hydra's `++`, and `resume` becomes the folder to go on in.
    """
    arguments, asks = grammar.parse_arguments(argv)
    if arguments.experimental_rerun:
        stop(name, ["--experimental-rerun reads a pickle, which may run code; use resume=RUN, or RUN/config.yaml"])
    if asks:
        return argv
    from vitlab import resume

    problems: list[str] = []
    primary = arguments.config_name or name
    with initialized(arguments):
        try:
            resumed = resume.resumed_overrides(arguments.overrides, problems)
            resumed += grammar.hydra_groups_of_experiments(arguments.overrides)
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())
            overrides = parser.parse_overrides([*resumed, *arguments.overrides])
        except HydraException as error:
            stop(name, grammar.unreadable(arguments.overrides) or [str(error)])
        look_in([str(f) for o in overrides if o.key_or_group == "hydra.searchpath" for f in grammar.listing(o.value())])
        groups = {o.input_line: options for o in overrides if (options := grammar.group_options(o))}
        for override in list(overrides):
            options = groups.get(override.input_line, [])
            found = grammar.group_problems(override, options, name, primary)
            if found := found or grammar.option_problems(override, options):
                problems += found
                overrides.remove(override)  # so that what else is wrong can be seen as well
        choices = [(o, grammar.spellings(o, o.input_line in groups, arguments.multirun)) for o in overrides]
        for lines in grammar.variants([c for _, c in choices if c]):
            problems += [
                p for p in composed_problems(primary, function, lines, sweep=arguments.multirun) if p not in problems
            ]
        single = [c[0] for _, c in choices if c]
        if arguments.multirun or any(o.key_or_group in ("experiment", "hydra.mode") for o in overrides):
            found = searched_problems(primary, function, overrides, single, multirun=arguments.multirun)
            problems += [p for p in found if p not in problems]
        if problems:
            stop(name, problems)
        listed = compose(primary, [c[0] for o, c in choices if c and o.input_line in groups])
        unlisted = {o.input_line for o in overrides if o.input_line not in groups and grammar.is_unlisted(o, listed)}
        in_folder = any(o.key_or_group == "hydra.run.dir" for o in overrides)
        by_others = launch.started_by_others(os.environ) or launch.place(os.environ)
        if by_others and not in_folder:
            stop(
                name, ["hydra.run.dir is not set: processes started by torchrun or srun need one folder, named by you"]
            )
        cfg = compose(primary, [c[0] for _, c in choices if c])
        config = plain(cfg, UNSET_RUN_DIR)
        assert isinstance(config, dict)  # or it would have been refused above
        multirun = arguments.multirun or cfg.hydra.mode == RunMode.MULTIRUN
        folder = "hydra.sweep.dir" if multirun else "hydra.run.dir"
        with suppress(OmegaConfBaseException):  # a folder named by what only a job knows
            if problem := runs.unwritable(folder, Path(OmegaConf.select(cfg, folder)).absolute()):
                stop(name, [problem])
        if multirun:
            if config.get("resume") not in (None, "auto"):
                stop(name, [f"resume={config['resume']} names one run, and -m starts several; leave one of them out"])
            if "retries" in config:  # it keeps a ledger
                if by_others:
                    stop(
                        name,
                        ["-m starts several runs, and torchrun or srun the processes of one; leave one of them out"],
                    )
                resumed += named_sweep(name, cfg, config, overrides)
        else:
            if "retries" in config and config["sweep"] is not None:
                stop(name, [f"sweep={config['sweep']} names a sweep, and this is one run; add -m, or leave it out"])
            if config.get("resume", "") is None and launch.restarted(os.environ):
                config["resume"] = "auto"
                resumed.append("resume=auto")  # a requeued job goes on, whatever its command line says
            if in_folder and launch.rank(os.environ) == 0:
                if problems := resume.folder_problems(config, Path(cfg.hydra.run.dir).resolve()):
                    stop(name, problems)
            elif config.get("resume") == "auto" and not in_folder:
                resumed += resume.resume_auto(config, Path(cfg.hydra.run.dir).parent)
    quiet = ["hydra.output_subdir=null"] if launch.rank(os.environ) else []  # rank 0 writes it
    line = ["++" + a if a in unlisted else a for a in argv]
    first = argv.index(arguments.overrides[0]) if arguments.overrides else len(argv)
    return [*line[:first], *resumed, *line[first:], *quiet]


def named_sweep(name: str, cfg: DictConfig, config: Node, overrides: list[Override]) -> list[str]:
    """The name of a sweep that was given none, as an override: the same command has to find it again."""
    lines = [o.input_line or "" for o in overrides]
    given = {o.key_or_group for o in overrides}
    if "hydra.sweep.subdir" in given:
        stop(name, ["hydra.sweep.subdir can't be set: a sweep finds its jobs again by the names of their folders"])
    found, added = config["sweep"], list[str]()
    sweeper = cfg.hydra.sweeper
    if found is None:
        varies = identity.varying(lines, sweeper.get("params") or sweeper.get("search_space") or {})
        found = identity.sweep_name(identity.subject(config, varies), lines, varies, str(sweeper._target_))
        if "hydra.sweep.dir" in given:
            found = identity.safe(Path(cfg.hydra.sweep.dir).name)
        added = [f"sweep={found}"]
    folder = Path(cfg.hydra.sweep.dir) if "hydra.sweep.dir" in given else ledger.SWEEPS / found
    if problem := ledger.cancelled_problem(folder):
        stop(name, [problem])
    return added


@contextmanager
def initialized(arguments: Namespace) -> Iterator[None]:
    """Hydra's loader on our `conf/` and what the command line adds to its search path."""
    folder = str(Path(arguments.config_path).resolve()) if arguments.config_path else str(CONF)
    with hydra.initialize_config_dir(folder, version_base="1.3", job_name="preflight"):
        token = _composed.set({})
        try:
            if arguments.config_dir:
                look_in([f"file://{Path(arguments.config_dir).resolve()}"])
            yield
        finally:
            _composed.reset(token)


@contextmanager
def composing() -> Iterator[None]:
    """Hydra's loader, to compose what other programs would be given: a command's own, or one on our `conf/`."""
    with ExitStack() as stack:
        if not GlobalHydra.instance().is_initialized():  # outside of a command
            stack.enter_context(hydra.initialize_config_dir(str(CONF), version_base="1.3"))
        yield


def look_in(folders: list[str]) -> None:
    """Adds to where Hydra's loader looks for options; it lists the folders when it is made, so again now."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    _composed.get({}).clear()
    for folder in folders:
        loader.config_search_path.prepend("command-line", folder, anchor="schema")
    loader.repository.initialize_sources(loader.config_search_path)


def searched_problems(
    name: str, function: Function, overrides: list[Override], single: list[str], *, multirun: bool
) -> list[str]:
    """Everything wrong with a search: its own settings, and the jobs at the bounds of its ranges. `single`: the command
    line with one value for each setting.
    """
    from vitlab.sweeps.search import checks
    from vitlab.sweeps.search.space import boundary_points

    try:
        cfg = compose(name, single)
        sweeper = OmegaConf.to_container(cfg.hydra.sweeper, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError):
        return []  # already told
    if not isinstance(sweeper, dict) or sweeper.get("_target_") not in checks.SWEEPERS:
        return []
    if not multirun and cfg.hydra.mode != RunMode.MULTIRUN:
        return []
    if refused := trust.hydra_problems(OmegaConf.to_container(cfg.hydra)):
        return refused
    lines = [o.input_line or "" for o in overrides if not o.is_hydra_override()]
    config = plain(cfg, UNSET_RUN_DIR)
    if isinstance(config, str):
        return []
    loader = GlobalHydra.instance().config_loader()
    parameters, found = checks.problems({str(k): v for k, v in sweeper.items()}, lines, config, loader)
    if found:
        return found
    parser = OverridesParser.create(loader)
    known = {o.key_or_group for o in overrides if o.is_discrete_sweep()}  # each value was checked with the others
    for point in boundary_points(parameters, known):
        chosen = [
            s
            for o in parser.parse_overrides(point)
            for s in grammar.spellings(o, bool(grammar.group_options(o)), False)
        ]
        found += [p for p in composed_problems(name, function, [*single, *chosen], sweep=True) if p not in found]
    return found


def compose(name: str, overrides: list[str]) -> DictConfig:
    """The configuration that Hydra composes, the `hydra` node included, outside a job.

    In the preflight the same overrides are composed once: what is returned is not to be changed.
    """
    known, key = _composed.get({}), (name, *overrides)
    if key not in known:
        known[key] = hydra.compose(name, overrides, return_hydra_config=True)
    return known[key]


def composed_problems(name: str, function: Function, overrides: list[str], *, sweep: bool) -> list[str]:
    """Everything wrong with the configuration that these overrides compose, for a run or a job of a sweep."""
    try:
        cfg = compose(name, overrides)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return [str(error.__cause__ or error)]
    sweep = sweep or cfg.hydra.mode == RunMode.MULTIRUN
    if not sweep and OmegaConf.select(cfg, "trainer.devices") in (None, 1):  # the job will be in this process
        importing.ahead({key: OmegaConf.to_container(cfg[key]) for key in ("logger", "trainer") if cfg.get(key)})
    if refused := trust.hydra_problems(OmegaConf.to_container(cfg.hydra)):
        return refused
    if "run_dir" in cfg:  # and isn't ???, which `in` overlooks
        return [f"run_dir={cfg.run_dir} can't be set: the program sets it; use hydra.run.dir={cfg.run_dir}"]
    problems, elsewhere = launchers.problems(OmegaConf.to_container(cfg.hydra.launcher), sweep=sweep)
    return problems + check(function, plain(cfg, UNSET_RUN_DIR), elsewhere=elsewhere)


def plain(cfg: DictConfig, run_dir: str) -> Node | str:
    """The resolved configuration as plain data, with the run folder filled in; a message if it can't be resolved."""
    cfg = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
    OmegaConf.set_struct(cfg, False)  # a copy of ours, and only for the next lines: every key is checked after it
    if "run_dir" in cfg.keys():  # noqa: SIM118 (as above); without it the command leaves no run
        cfg.run_dir = run_dir
    folder = cfg.get("data_dir")
    if isinstance(folder, str) and not is_remote(folder):  # a run may be evaluated, or resumed, from another folder
        cfg.data_dir = str(Path(folder).expanduser().absolute())
    try:
        resolved = OmegaConf.to_container(cfg, resolve=True)
    except RecursionError:
        return "the configuration holds itself: an interpolation names a node that it lies in"
    except (OmegaConfBaseException, ValueError) as error:
        return str(error).splitlines()[0]
    assert isinstance(resolved, dict)
    return completed(placed({str(k): v for k, v in resolved.items()}))


def placed(config: Node) -> Node:
    """The configuration with the group `data` as its data set has it recorded."""
    data = config.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    normalize = loader_facts(source.get("_target_")).normalize if isinstance(source, dict) else None
    return {**config, "data": normalize(data)} if normalize and isinstance(data, dict) else config


def check(function: Function, config: Node | str, *, elsewhere: bool = False) -> list[str]:
    """All problems of a resolved configuration: keys and types first, then what one key demands of another."""
    if isinstance(config, str):
        return [config]
    from vitlab.checks import problems

    return problems(function, config, elsewhere=elsewhere)


def stop(name: str, problems: list[str]) -> NoReturn:
    """Shows the problems and ends the program with status 2, the status of a wrong command line."""
    print(message(name, problems), file=sys.stderr)
    sys.exit(2)


def message(name: str, problems: list[str]) -> str:
    """All problems of a configuration, a line each."""
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return "\n".join([f"{name}: {count} in the configuration; nothing was started.", *(f"  - {p}" for p in problems)])


# ---------------------------------------------------------------------------------------------------------- jobs


def run_job(name: str, function: Function, entry: Path, cfg: DictConfig) -> float | None:
    """A job as Hydra starts it: checks the configuration once more, writes it down, runs it, returns its score."""
    from vitlab import resume

    hydra_cfg = HydraConfig.get()
    run_dir = Path(hydra_cfg.runtime.output_dir).resolve()
    config = plain(cfg, str(run_dir))
    # once more: a sweep's own values, and what another sweeper suggests, have not been seen before
    sweep = hydra_cfg.mode == RunMode.MULTIRUN
    if problems := [*trust.hydra_problems(OmegaConf.to_container(hydra_cfg)), *check(function, config)]:
        if sweep and "retries" in config:
            runs.record_crash(run_dir, "; ".join(problems))  # for the sweep's table; nothing was started
        raise ValueError(message(name, problems))
    assert isinstance(config, dict)
    if trial := hydra_cfg.sweeper.get("trial"):  # of a search: the callback that prunes it
        config["callbacks"]["pruning"] = json.loads(trial)
    if "run_dir" not in config:
        function(**config)
        return None

    def start(config: Node) -> None:
        jobs.start_job(name, function, entry, config, sweep=sweep)

    if launch.rank(os.environ) != 0:
        if launch.place(os.environ):  # another machine of a job: it starts its own ranks
            start(config)
        else:
            jobs.run_recorded(name, function, run_dir, config)
    elif sweep and "retries" in config:
        job, line = ledger_entry(hydra_cfg, config)
        ledger.enter(run_dir.parent, {job: line})
        waits = not str(hydra_cfg.sweeper._target_).endswith(".GridSweeper")  # that waits itself, at the end
        claiming.take_turn(run_dir, config, start, waits=waits)
    else:
        if config.get("resume", "") is None and launch.restarted(os.environ):
            config["resume"] = "auto"  # a requeued job goes on
        if problems := resume.folder_problems(config, run_dir):
            raise ValueError(message(name, problems))
        with runs.held(run_dir, "job"):
            runs.write_config(run_dir, config)
            start(config)
    results = runs.read_results(run_dir)
    objective = config.get("objective")
    return float(results[objective]) if objective in results else None


def ledger_entry(hydra_cfg: Any, config: Node | str) -> tuple[str, Node]:
    """A sweep's job as its ledger lists it: its identity, its folder's name and its settings."""
    return ledger.entry(Path(hydra_cfg.sweep.dir), config, list(hydra_cfg.overrides.task))
