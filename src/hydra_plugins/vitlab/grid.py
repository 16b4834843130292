"""Hydra's sweeper of a grid, which skips finished jobs and waits for those that other processes run.

Hydra takes plugins from the package `hydra_plugins` alone, and imports all of it at each start: nothing heavy here.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

if TYPE_CHECKING:
    from vitlab.sweeps.planner import Planner


class GridSweeper(BasicSweeper):
    """Launch the unfinished jobs of a grid that no other process runs, in rounds until none are left.

    A job that fails does not stop the others. The first failure is raised at the end, so the program exits with status
    1.

    Args:
        max_batch_size: Jobs that the launcher gets at once; None: all.
        params: What varies, in addition to the command line: `{optimizer.lr: "1e-3,3e-4"}`.
    """

    def sweep(self, arguments: list[str]) -> Any:
        from vitlab.distributed import signals

        with signals.handle_signals(lambda outcome: None):
            return self.launch_rounds(self.planner(arguments))

    def planner(self, arguments: list[str]) -> "Planner":
        from vitlab.jobs.compose import UNSET_RUN_DIR, resolve_config
        from vitlab.sweeps import ledger
        from vitlab.sweeps.planner import Planner

        assert self.config is not None
        assert self.hydra_context is not None
        config, loader = self.config, self.hydra_context.config_loader
        sweep = Path(config.hydra.sweep.dir)
        sweep.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, sweep / "multirun.yaml")

        def describe(overrides: list[str]) -> tuple[str, Any]:
            composed = loader.load_sweep_config(config, overrides)
            HydraConfig.instance().set_config(composed)  # as when the job runs
            return ledger.job_entry(composed.hydra, resolve_config(composed, UNSET_RUN_DIR))

        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        folders = [Path(source.path) for source in loader.get_sources() if source.scheme() == "file"]
        return Planner(sweep, self.split_arguments(parsed, None)[0], describe, folders)

    def launch_rounds(self, planner: "Planner") -> list[Sequence[JobReturn]]:
        from vitlab.sweeps import claim, ledger

        assert self.launcher is not None
        returns, failures = list[Sequence[JobReturn]](), list[JobReturn]()
        jobs, launched = planner.jobs(), 0
        started = set[Path]()  # while this process has run: those that end by trainer.max_time wait for the next one
        while True:
            claim.exit_on_cancel(planner.sweep)
            left, before = dict[Path, list[str]](), launched
            while (batch := FreeJobs(jobs, planner, started, self.max_batch_size)).has_one():
                ends = self.launcher.launch(batch, initial_job_idx=launched)
                launched += len(batch.taken)
                returns.append(ends)
                failures += [end for end in ends if end.status != JobStatus.COMPLETED]
                good = [job for job, end in zip(batch.taken, ends, strict=True) if end.status == JobStatus.COMPLETED]
                left |= {**dict(good), **batch.busy}
                claim.exit_on_cancel(planner.sweep)  # a cancelled job would look like a failure
            left |= batch.busy
            left = {job: values for job, values in left.items() if not is_over(ledger.job_status(job), job in started)}
            if not left:
                break
            if launched == before:
                time.sleep(claim.POLL)
            jobs = iter(left.items())
        if planner.error is not None:
            raise planner.error
        for end in failures:
            _ = end.return_value  # raises
        return returns


class FreeJobs(Sequence[Sequence[str]]):
    """The overrides of the jobs that can start, each looked up when the launcher asks for it.

    taken  jobs that the launcher got
    busy   jobs that another process runs
    shared the overrides that all jobs of the grid have
    """

    def __init__(
        self, jobs: Iterator[tuple[Path, list[str]]], planner: "Planner", started: set[Path], most: int | None
    ) -> None:
        self.jobs, self.sweep, self.started = jobs, planner.sweep, started
        self.most = len(planner.combinations) if most is None else most
        self.taken, self.busy = list[tuple[Path, list[str]]](), dict[Path, list[str]]()
        self.shared = frozenset.intersection(*map(frozenset, planner.combinations))

    def __len__(self) -> int:
        return self.most

    def __getitem__(self, index: Any) -> Any:
        """Raises `IndexError` after the last one, and once the sweep is cancelled."""
        while len(self.taken) <= index:
            self.taken.append(self.find_next())
        return self.taken[index][1]

    def has_one(self) -> bool:
        try:
            return self[0] is not None
        except IndexError:
            return False

    def find_next(self) -> tuple[Path, list[str]]:
        from vitlab.sweeps import ledger

        if len(self.taken) >= self.most or ledger.cancelled_problem(self.sweep):
            raise IndexError
        for folder, overrides in self.jobs:
            status, begun = ledger.job_status(folder), folder in self.started
            self.started.add(folder)
            if status == "running":
                self.busy[folder] = overrides
            elif not is_over(status, begun):
                return folder, overrides
        raise IndexError


def is_over(status: str, begun: bool) -> bool:
    """Whether a job needs no start by this process, which may have begun it already."""
    from vitlab.sweeps import ledger

    return status in ledger.DONE or (status == "stopped" and begun)
