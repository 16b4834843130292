"""Run a job (a resolved configuration) in this process or in new ones."""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from vitlab.config.printable import printable
from vitlab.config.schema import Node
from vitlab.distributed import environment, launch, signals
from vitlab.runs import lock, record

Function = Callable[..., Node]  # of a program: its settings -> its results


def start_job(name: str, function: Function, entry: Path, config: Node, *, sweep: bool) -> None:
    """Run a job here, or in new processes if it has several devices, belongs to a sweep, or may be restarted."""
    run_dir, trainer = Path(config["run_dir"]), config.get("trainer")  # without a trainer: one process
    ranks = environment.ranks_per_node(trainer["devices"], trainer["accelerator"]) if trainer else 1
    restarts = config.get("max_restarts", 0)
    several = ranks > 1 or environment.node_from_env(os.environ)
    if environment.launched_externally(os.environ) or not (several or sweep or restarts):
        run_here(name, function, run_dir, config)
        return
    if ranks > 1:
        print(f"{name}: starting {ranks} processes", file=sys.stderr, flush=True)
    elif not sweep:
        launch.TEMPLATE.entry = None  # one process
    try:
        launch.run_ranks(entry, run_dir, ranks, max_restarts=restarts)
    except signals.StopRequested as stop:
        record.record_end(run_dir, stop.outcome)  # if the first rank was killed before it could
        sys.exit(signals.STATUS[stop.outcome])
    except launch.JobFailed as error:
        record.record_crash(run_dir, str(error), first=error.killed)
        if sweep:
            raise  # Hydra prints it, continues with the next job, and ends with status 1
        print(printable(f"{name} failed: {error}; {record.resume_hint(run_dir)}"), file=sys.stderr)
        sys.exit(1)


def run_here(name: str, function: Function, run_dir: Path, config: Node) -> None:
    """Run the function in this process, a rank of a job; the run folder gets its log and how it ended.

    An error is printed in one line and ends the process with status 1; its traceback is in the log.
    """
    rank = environment.rank(os.environ)
    file = run_dir / (f"{name}.rank{rank}.log" if rank else f"{name}.log")
    has_checkpoint = any((run_dir / "checkpoints").glob("*.ckpt"))
    if environment.is_restart(os.environ) and "resume" in config and (has_checkpoint or config["resume"] is None):
        config["resume"] = "auto"  # also if it was resumed from a file: it is further now

    def at_once(outcome: signals.Outcome) -> None:
        if rank == 0:
            record.record_end(run_dir, outcome)

    try:
        with ExitStack() as stack:
            if rank == 0:
                stack.enter_context(lock.run_lock(run_dir, "rank0"))
            stack.enter_context(record.log_to(file, rank == 0))
            results = stack.enter_context(record.record_run(run_dir, rank == 0))
            stack.enter_context(signals.handle_signals(at_once))
            launch.rejoin_group(os.environ)
            results.update(function(**config))
            launch.leave_group()
    except signals.StopRequested as stop:
        sys.exit(signals.STATUS[stop.outcome])
    except (KeyboardInterrupt, SystemExit):
        sys.exit(signals.STATUS["interrupted"])
    except lock.RunInUse as error:
        print(printable(f"{name}: {error}"), file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if "HYDRA_FULL_ERROR" in os.environ:
            raise
        if record.is_reported(run_dir, error, rank):
            sys.exit(1)
        hint = f"; {record.resume_hint(run_dir)}" if "resume" in config else ""  # of a command that trains
        print(printable(f"{name} failed; the traceback is in {file}{hint}"), file=sys.stderr)
        sys.exit(1)
