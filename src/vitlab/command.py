"""`@command(NAME)`: a function with a typed signature becomes a program configured by `conf/NAME.yaml`.

command line -> preflight: compose leniently, check everything, show all problems at once, or go on
             -> Hydra: compose, run or sweep, make the run folder
             -> job: one device in this process; several devices, or a sweep's job, in processes of their own
             -> function(**configuration), its results in `results.json`, its objective to the sweeper
"""

import logging
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
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import GroupDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitlab import claiming, identity, importing, launch, launchers, ledger, progress, resolvers, runs, stopping, trust
from vitlab.data.storage import is_remote
from vitlab.schema import Node, defaults, suggest
from vitlab.stopping import Stopped
from vitlab.weights.composing import completed

CONF = Path(__file__).resolve().parents[2] / "conf"
EXPERIMENTS = CONF.parent / "experiments"
UNSET_RUN_DIR = "runs"  # stands for the run folder while the configuration is only being checked

log = logging.getLogger(__name__)

_composed: ContextVar[dict[tuple[str, ...], DictConfig]] = ContextVar("composed")  # in the preflight

Function = Callable[..., Node]

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
            if run_dir := os.environ.pop(launch.RUN_VARIABLE, None):
                if parent := os.environ.pop(launch.PARENT_VARIABLE, None):
                    launch.end_with(int(parent))
                config = runs.read_config(Path(run_dir))
                with importing.uncollected():
                    importing.ahead(config)
                run_recorded(name, function, Path(run_dir), config)
                return
            launch.make_importable(Path(__file__).resolve().parents[1])
            with importing.uncollected():
                register()
                sys.argv[1:] = preflight(name, function, sys.argv[1:])
            try:
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)()
            except Stopped as stop:  # a sweep, between two jobs
                sys.exit(stopping.STATUS[stop.outcome])
            finally:
                progress.end()

        return program

    return wrap


def register() -> None:
    """Tells Hydra what no YAML file has to repeat: signatures' defaults, experiments."""
    store = ConfigStore.instance()
    store.repo = Stored(store.repo)

    def signature(target: str, *supplied: str) -> Node:
        return {k: v for k, v in defaults(target).items() if k not in supplied}

    network = signature("vitlab.vit.VisionTransformer", "image_size", "num_classes", "in_channels")
    data = signature("vitlab.data.module.DataModule")
    data["augment"] = signature("vitlab.data.augment.Augment")
    classifier = signature("vitlab.classifier.Classifier", "_target_", "optimizer", "schedule")
    weights = signature("vitlab.weights.loading.network", "_target_")
    for group, name, node in (
        ("model", "vit_signature", network),
        ("data", "data_signature", data),
        ("classifier", "signature", classifier),
        ("weights", "signature", weights),
    ):
        store.store(group=group, name=name, node=node, provider="signature")
    for file in sorted(EXPERIMENTS.glob("*.yaml")):
        store.store(
            group="experiment", name=file.stem, node=OmegaConf.load(file), package="_global_", provider="experiments"
        )


class Stored(dict[str, Any]):
    """Hydra's store, which Hydra copies whole each time that it looks for the options of a group: hundreds of times for
    `--help`. It never changes what it has copied, and copies what it loads once more, so one will do.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "Stored":
        return self


# ---------------------------------------------------------------------------------------------------- preflight


def preflight(name: str, function: Function, argv: list[str]) -> list[str]:
    """Checks a command line before anything starts; exits with status 2 and every problem, or returns it.

    Returned are the arguments for Hydra: settings that exist but that no YAML file lists (there are dozens in
    `lightning.Trainer`) get Hydra's `++`, and `resume` becomes the folder to go on in.
    """
    arguments, asks = parse_arguments(argv)
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
            resumed += hydra_groups_of_experiments(arguments.overrides)
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())
            overrides = parser.parse_overrides([*resumed, *arguments.overrides])
        except HydraException as error:
            stop(name, [str(error)])
        look_in([str(f) for o in overrides if o.key_or_group == "hydra.searchpath" for f in listing(o.value())])
        groups = {o.input_line: options for o in overrides if (options := group_options(o))}
        for override in list(overrides):
            if found := option_problems(override, groups.get(override.input_line, [])):
                problems += found
                overrides.remove(override)  # so that what else is wrong can be seen as well
        choices = [(o, spellings(o, o.input_line in groups, arguments.multirun)) for o in overrides]
        for lines in variants([c for _, c in choices if c]):
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
        unlisted = {o.input_line for o in overrides if o.input_line not in groups and is_unlisted(o, listed)}
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


def parse_arguments(argv: list[str]) -> tuple[Namespace, bool]:
    """Hydra's own parsing of a command line, and whether it only asks for help or shows the configuration."""
    from hydra._internal.utils import get_args_parser

    arguments = get_args_parser().parse_args(argv)
    asks = ("help", "hydra_help", "cfg", "info", "shell_completion", "experimental_rerun")
    return arguments, any(getattr(arguments, a) for a in asks)


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


def look_in(folders: list[str]) -> None:
    """Adds to where Hydra's loader looks for options; it lists the folders when it is made, so again now."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    _composed.get({}).clear()
    for folder in folders:
        loader.config_search_path.prepend("command-line", folder, anchor="schema")
    loader.repository.initialize_sources(loader.config_search_path)


def hydra_groups_of_experiments(overrides: list[str]) -> list[str]:
    """What an experiment says of Hydra's own groups (`override /hydra/sweeper: optuna`), as overrides.

    Hydra lets the primary file go before a file that it includes.
    """
    parsed = {o.key_or_group: o for o in OverridesParser.create().parse_overrides(overrides)}
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    found = []
    for name in listing(parsed["experiment"].value()) if "experiment" in parsed else []:
        file = loader.repository.load_config(f"experiment/{name}") if isinstance(name, str) else None
        for default in file.defaults_list or [] if file else []:
            if default.is_override() and isinstance(default, GroupDefault):
                group = (default.group or "").lstrip("/")
                if group.startswith("hydra/") and group not in parsed:
                    found.append(f"{group}={default.value}")
    return found


def listing(value: Any) -> list[Any]:
    """A value that may stand for a list of one."""
    return value if isinstance(value, list) else [value]


def group_options(override: Override) -> list[str]:
    """The options of the group that an override chooses from; empty for a value."""
    loader = GlobalHydra.instance().config_loader()
    return loader.get_group_options(override.key_or_group)


def option_problems(override: Override, options: list[str]) -> list[str]:
    """Whether the chosen option(s) of a group exist; `options` is empty for what is no group."""
    if not options:
        return []
    chosen = listing(override.value())
    if override.is_sweep_override():
        chosen = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
    hidden = {o for o in options if o.endswith("signature")}
    return [
        launchers.missing(override.key_or_group, str(option))
        or f"{override.key_or_group}={option}: there is no such option{suggest(str(option), options)} "
        f"(of {', '.join(sorted(set(options) - hidden))})"
        for option in chosen
        if isinstance(option, str | int) and str(option) not in options and "*" not in str(option)
    ]


def spellings(override: Override, is_group: bool, multirun: bool) -> list[str]:
    """The single values that an override stands for, spelt so that composing never fails on an unknown key.

    The check finds all unknown keys, where Hydra's own refusal names the first. What a search samples
    (`interval(...)`) can't be known yet, so nothing stands for it: each job checks itself again when it starts.
    """
    line = override.input_line or ""
    if override.is_sweep_override() and multirun:
        values = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
        return [f"{'' if is_group else '++'}{override.key_or_group}={value}" for value in values]
    if is_group or override.is_delete() or override.is_hydra_override() or override.is_sweep_override():
        return [line]
    return ["++" + line.lstrip("+")]


def is_unlisted(override: Override, listed: DictConfig) -> bool:
    """Whether a plain `key=value` names a key that the composed files don't hold."""
    plain = not (override.is_add() or override.is_force_add() or override.is_delete())
    parent, _, key = override.key_or_group.rpartition(".")
    holder = OmegaConf.select(listed, parent) if parent else listed
    is_listed = OmegaConf.is_dict(holder) and key in holder.keys()  # noqa: SIM118 (`in` overlooks what is ???)
    return plain and not is_listed and not override.is_hydra_override()


def variants(choices: list[list[str]]) -> Iterator[list[str]]:
    """Command lines that together hold every value of a sweep: its first job, then each other value in its place."""
    first = [c[0] for c in choices]
    yield first
    for i, values in enumerate(choices):
        for value in values[1:]:
            yield [*first[:i], value, *first[i + 1 :]]


def searched_problems(
    name: str, function: Function, overrides: list[Override], single: list[str], *, multirun: bool
) -> list[str]:
    """Everything wrong with a search: what it says, and what comes of the ends of its ranges. `single`: the command
    line with one value for each setting.
    """
    from vitlab import search_checks

    try:
        cfg = compose(name, single)
        sweeper = OmegaConf.to_container(cfg.hydra.sweeper, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError):
        return []  # already told
    if not isinstance(sweeper, dict) or sweeper.get("_target_") not in search_checks.SWEEPERS:
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
    space, found = search_checks.problems({str(k): v for k, v in sweeper.items()}, lines, config, loader)
    if found:
        return found
    parser = OverridesParser.create(loader)
    known = {o.key_or_group for o in overrides if o.is_discrete_sweep()}  # each value was checked with the others
    for corner in space.corners(known):
        chosen = [s for o in parser.parse_overrides(corner) for s in spellings(o, bool(group_options(o)), False)]
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
    """With `data.name`, which names a set of the Hugging Face Hub, where its source has it: a local set by its whole
    path, since a run may be evaluated, or resumed, from another folder.
    """
    data = config.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(source, dict):
        return config
    if source.get("_target_") != "vitlab.data.sources.huggingface":
        return config
    data = {key: value for key, value in data.items() if key != "name"}
    if isinstance(name := source.get("name"), str) and Path(name).expanduser().exists():
        source = {**source, "name": str(Path(name).expanduser().absolute())}
    return {**config, "data": {**data, "source": source}}


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
    from vitlab import resume, search

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
    if added := search.callbacks_of(hydra_cfg):
        config["callbacks"] |= added
    if "run_dir" not in config:
        function(**config)
        return None

    def start(config: Node) -> None:
        start_job(name, function, entry, config, sweep=sweep)

    if launch.rank(os.environ) != 0:
        if launch.place(os.environ):  # another machine of a job: it starts its own ranks
            start(config)
        else:
            run_recorded(name, function, run_dir, config)
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


def start_job(name: str, function: Function, entry: Path, config: Node, *, sweep: bool) -> None:
    """Runs a job in this process, or in processes of its own where it has several devices, belongs to a sweep, or may
    have to be started again.
    """
    run_dir, trainer = Path(config["run_dir"]), config.get("trainer")  # a command without one runs in one process
    ranks = launch.ranks_per_node(trainer["devices"], trainer["accelerator"]) if trainer else 1
    again = config.get("restarts") or config.get("on_out_of_memory") == "accumulate"
    several = ranks > 1 or launch.place(os.environ)
    if launch.started_by_others(os.environ) or not (several or sweep or again):
        run_recorded(name, function, run_dir, config)
        return
    try:
        run_until_it_fits(entry, run_dir, ranks, config)
    except Stopped as stop:
        runs.record_end(run_dir, stop.outcome)  # once more: the first rank may have been killed before it could
        sys.exit(stopping.STATUS[stop.outcome])
    except launch.JobFailed as error:
        runs.record_crash(run_dir, str(error), first=error.killed)
        if sweep:
            raise  # Hydra shows it, goes on with the next job, and ends with status 1
        print(f"{name} failed: {error}; {runs.way_on(run_dir)}", file=sys.stderr)
        sys.exit(1)


def run_until_it_fits(entry: Path, run_dir: Path, ranks: int, config: Node) -> None:
    """`launch.run_ranks`, again with smaller parts where memory was not enough and the configuration asks so."""
    while True:
        try:
            return launch.run_ranks(entry, run_dir, ranks, restarts=config.get("restarts", 0))
        except launch.JobFailed:
            if launch.place(os.environ):
                raise  # the other machines would have to do the same
            from vitlab import memory

            going_on = any((run_dir / "checkpoints").glob("*.ckpt"))
            world = ranks * (config["trainer"].get("num_nodes") or 1)
            smaller = memory.smaller_parts(config, runs.read_results(run_dir), ranks=world, going_on=going_on)
            if smaller is None:
                raise
            config = smaller
            runs.write_config(run_dir, config)
            parts = config["trainer"]["accumulate_grad_batches"]
            where = "its last checkpoint" if going_on else "the start"
            line = f"out of memory: the run goes on from {where} with trainer.accumulate_grad_batches={parts}"
            print(line, file=sys.stderr)
            with (run_dir / f"{entry.stem}.log").open("a") as file:
                file.write(f"{line}\n")


def run_recorded(name: str, function: Function, run_dir: Path, config: Node) -> None:
    """Runs the function in this process, (a rank of) a job, with its log and its end kept in the run folder.

    An error is told in one line, and ends the process with status 1: its traceback is in the log.
    """
    rank = launch.rank(os.environ)
    file = run_dir / (f"{name}.rank{rank}.log" if rank else f"{name}.log")
    begun = any((run_dir / "checkpoints").glob("*.ckpt"))
    if launch.restarted(os.environ) and "resume" in config and (begun or config["resume"] is None):
        config["resume"] = "auto"  # also where it began from a file: it is further by now

    def at_once(outcome: stopping.Outcome) -> None:
        if rank == 0:
            runs.record_end(run_dir, outcome)

    try:
        with ExitStack() as stack:
            if rank == 0:
                stack.enter_context(runs.held(run_dir, "rank0"))
            stack.enter_context(runs.logging_to(file, rank == 0))
            results = stack.enter_context(runs.recorded(run_dir, rank == 0))
            stack.enter_context(stopping.heard(at_once))
            stack.enter_context(claiming.cancel_heard(run_dir, config))
            launch.join_again(os.environ)
            results.update(function(**config))
            launch.leave_group()
    except Stopped as stop:
        sys.exit(stopping.STATUS[stop.outcome])
    except (KeyboardInterrupt, SystemExit):
        sys.exit(stopping.STATUS["interrupted"])
    except runs.Occupied as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception:
        if "HYDRA_FULL_ERROR" in os.environ:
            raise
        way_on = f"; {runs.way_on(run_dir)}" if "resume" in config else ""  # a command that trains
        print(f"{name} failed; the traceback is in {file}{way_on}", file=sys.stderr)
        sys.exit(1)
