"""`@command(NAME)`: a function with a typed signature becomes a program configured by `conf/NAME.yaml`.

command line -> preflight: compose, check everything, show all problems at once
             -> Hydra: compose, run or sweep, make the run folder
             -> job: one device in this process; several devices, or a sweep's job, in processes of their own
             -> function(**configuration), its results in `results.json`, its objective to the sweeper
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vitlab.cli import checks, imports, register
from vitlab.cli.arguments import parse_arguments, plain_arguments, with_action
from vitlab.cli.checks import Program, Rule, message
from vitlab.config import allowlist, paths
from vitlab.config.schema import Node
from vitlab.distributed import environment, launch, signals, template
from vitlab.jobs.compose import CONF, initialize_hydra, resolve_config
from vitlab.jobs.run import Function, run_here, start_job
from vitlab.runs import folder, lock, record
from vitlab.sweeps import ledger

register.register_resolvers()  # here, as workers of launchers import this module
if str(allowlist.WORKING_DIR) not in sys.path:
    sys.path.append(str(allowlist.WORKING_DIR))  # the user's own code; last, so that it hides no library


@dataclass(frozen=True)
class Command(Program):
    """A program as a user starts it; `entry` is its file."""

    entry: Path = Path()

    def __call__(self) -> None:
        template.serve(self.preload)
        if run_dir := os.environ.pop(template.RUN_VARIABLE, None):
            return self.run_rank(Path(run_dir))
        if "--version" in sys.argv[1:]:  # Hydra's parser would print Hydra's
            print(f"vitlab {paths.version()}", file=sys.stdout)
            return None
        if not paths.IN_WHEEL:
            launch.export_pythonpath(paths.PROGRAMS)
        with imports.pause_gc():
            register.register()
            sys.argv[1:] = plain_arguments(with_action(sys.argv[1:], self.function))
            flags, asks = parse_arguments(sys.argv[1:])
            allowlist.trust_named_packages(flags.overrides, flags.config_dir)
            if asks:
                from vitlab.cli.preflight import check_sources

                with initialize_hydra(flags):
                    check_sources(self, flags)
            if flags.help:
                from vitlab.cli.help import show_help

                sys.exit(show_help(self, flags))
            if not asks:
                from vitlab.cli.preflight import preflight

                with imports.print_if_slow(f"{self.name}: checking the configuration"):
                    sys.argv[1:] = preflight(self, sys.argv[1:])

        def job(cfg: DictConfig) -> float | None:
            return run_job(self, cfg)

        launch.TEMPLATE.entry = self.entry
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=self.name)(job)()
        except signals.StopRequested as stop:  # a sweep, between two jobs
            sys.exit(signals.STATUS[stop.outcome])
        finally:
            if shown := sys.modules.get("vitlab.sweeps.progress"):  # a sweep's
                shown.stop_progress()

    def run_rank(self, run_dir: Path) -> None:
        """Run (a rank of) a job that another process prepared."""
        if parent := os.environ.pop(template.PARENT_VARIABLE, None):
            launch.exit_with_parent(int(parent))
        imports.set_rank()
        run_here(self.name, self.run, run_dir, self.preload(run_dir))

    def preload(self, run_dir: Path) -> Node:
        """Import what a job needs, and look up its commit. Returns its configuration."""
        config = folder.read_config(run_dir)
        with imports.pause_gc():
            if "trainer" in config:  # or `run` prints it
                imports.print_importing(self.name)
            imports.preload(config)
        record.git_commit()
        return config

    def run(self, **config: Any) -> Node:
        """Call the function in a process of a job, which ends if the job's sweep is canceled."""
        from vitlab.sweeps import claim

        imports.print_importing(self.name)
        with claim.watch_for_cancel(Path(config["run_dir"]), config):
            return self.function(**config)


def command(name: str, *, check: Rule = lambda view: (), absent: tuple[str, ...] = ()) -> Callable[[Function], Command]:
    """Make a program of a function, whose keyword parameters are the root keys of `conf/NAME.yaml`.

    The function returns its results, with the value of the configuration's `objective` if there is one. `check` yields
    problems of the program's own settings; shared settings are checked without it.
    """

    def wrap(function: Function) -> Command:
        entry = Path(sys.modules[function.__module__].__file__ or "").resolve()
        return Command(name, function, check, absent, entry)

    return wrap


def run_job(program: Command, cfg: DictConfig) -> float | None:
    """Run a job as Hydra starts it: check its configuration again, write it to the run folder, return its score."""
    from vitlab.jobs import resume
    from vitlab.sweeps import claim

    hydra_cfg = HydraConfig.get()
    run_dir = Path(hydra_cfg.runtime.output_dir).resolve()
    config = resolve_config(cfg, str(run_dir))
    # again: values that a sweeper suggests have not been checked before
    sweep = hydra_cfg.mode == RunMode.MULTIRUN
    if problems := [*allowlist.hydra_problems(OmegaConf.to_container(hydra_cfg)), *checks.problems(program, config)]:
        if sweep and "max_failures_per_job" in config:
            record.record_crash(run_dir, "; ".join(problems))  # for the sweep's table; nothing was started
        raise ValueError(message(program.name, problems))
    assert isinstance(config, dict)
    if trial := hydra_cfg.sweeper.get("trial"):  # of a search: the callback that prunes it
        config["callbacks"]["pruning"] = json.loads(trial)
    if "run_dir" not in config:
        program.function(**config)
        return None

    def start(config: Node) -> None:
        if "devices" in program.absent:
            return run_here(program.name, program.run, run_dir, config)
        return start_job(program.name, program.run, program.entry, config, sweep=sweep)

    if environment.rank(os.environ) != 0:
        if environment.node_from_env(os.environ):  # another machine of a job: it starts its own ranks
            start(config)
        else:
            run_here(program.name, program.run, run_dir, config)
    elif sweep and "max_failures_per_job" in config:
        job, line = ledger.job_entry(hydra_cfg, config)
        ledger.add_jobs(run_dir.parent, {job: line})
        waits = not str(hydra_cfg.sweeper._target_).endswith(".GridSweeper")  # that waits itself, at the end
        claim.run_job_once(run_dir, config, start, waits=waits)
    else:
        if config.get("resume", "") is None and environment.is_restart(os.environ):
            config["resume"] = "auto"  # a requeued job is resumed
        if problems := resume.folder_problems(config, run_dir):
            raise ValueError(message(program.name, problems))
        with lock.run_lock(run_dir, "job"):
            folder.write_config(run_dir, config)
            start(config)
    results = folder.read_results(run_dir)
    objective = config.get("objective")
    return float(results[objective]) if objective in results else None
