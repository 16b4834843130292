"""Hydra's sweeper of a grid, with a ledger: it skips finished jobs, and waits for those that other processes run.

Hydra only takes plugins from the package `hydra_plugins`, and imports all of it at each start: nothing heavy here.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

log = logging.getLogger(__name__)


@dataclass
class PlannedJob:
    """A job of the grid: its overrides and its folder."""

    overrides: Sequence[str]
    folder: Path


class GridSweeper(BasicSweeper):
    """Launch unfinished, unclaimed jobs of a grid in rounds until none are left.

    A job that fails does not stop the others. The first failure is raised at the end, so the program exits with status
    1.

    Args:
        max_batch_size: Jobs that the launcher gets at once; None: all.
        params: What varies, in addition to the command line: `{optimizer.lr: "1e-3,3e-4"}`.
    """

    def sweep(self, arguments: list[str]) -> Any:
        from vitlab.distributed import signals

        with signals.handle_signals(lambda outcome: None):
            return self.launch_rounds(self.plan(arguments))

    def plan(self, arguments: list[str]) -> list[PlannedJob]:
        """Return the grid's jobs without duplicates, and add them to the ledger."""
        from vitlab.jobs.compose import UNSET_RUN_DIR, resolve_config
        from vitlab.sweeps import ledger

        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        planned, entries = dict[str, PlannedJob](), {}
        for overrides in self.split_arguments(parsed, None)[0]:
            config = loader.load_sweep_config(self.config, list(overrides))
            HydraConfig.instance().set_config(config)  # as when the job is run
            name, entry = ledger.job_entry(config.hydra, resolve_config(config, UNSET_RUN_DIR))
            if name in planned:
                log.warning("%s is the same job as %s", overrides, planned[name].overrides)
                continue
            planned[name], entries[name] = PlannedJob(overrides, folder / entry["folder"]), entry
        HydraConfig.instance().cfg = None
        ledger.add_jobs(folder, entries)
        return list(planned.values())

    def launch_rounds(self, jobs: list[PlannedJob]) -> list[Sequence[JobReturn]]:
        from vitlab.sweeps import claim, ledger

        assert self.launcher is not None
        assert self.config is not None
        sweep = Path(self.config.hydra.sweep.dir)
        returns, failures = list[Sequence[JobReturn]](), list[JobReturn]()
        launched, pending, last_line = 0, list(jobs), ""
        while pending:
            claim.exit_if_cancelled(sweep)
            states = {job.folder: ledger.job_status(job.folder) for job in pending}
            pending = [job for job in pending if states[job.folder] not in ledger.DONE]
            free = [job for job in pending if states[job.folder] != "running"]
            counts = {
                "done": len(jobs) - len(pending) - len(failures),
                "failed": len(failures),
                "run by other processes": len(pending) - len(free),
                "to be started": len(free),
            }
            line = f"{len(jobs)} jobs: {', '.join(f'{n} {what}' for what, n in counts.items() if n)}"
            if line != last_line:
                log.info(last_line := line)
            for first in range(0, len(free), size := self.max_batch_size or max(1, len(free))):
                batch = free[first : first + size]
                ends = self.launcher.launch([job.overrides for job in batch], initial_job_idx=launched)
                launched += len(batch)
                returns.append(ends)
                failures += [end for end in ends if end.status != JobStatus.COMPLETED]
                failed = [job for job, end in zip(batch, ends, strict=True) if end.status != JobStatus.COMPLETED]
                pending = [job for job in pending if job not in failed]
            if pending and not free:
                time.sleep(claim.POLL)
            claim.exit_if_cancelled(sweep)  # rather than raise what that made of its jobs
        for end in failures:
            _ = end.return_value  # raises
        return returns
