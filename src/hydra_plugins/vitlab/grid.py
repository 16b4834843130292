"""Hydra's sweeper of a grid, which skips finished jobs and waits for those that other processes run.

Hydra takes plugins from the package `hydra_plugins` alone, and imports all of it at each start: nothing heavy here.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

log = logging.getLogger(__name__)


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
            return self.launch_rounds(self.plan(arguments))

    def plan(self, arguments: list[str]) -> dict[Path, Sequence[str]]:
        """Return the overrides of the grid's jobs by folder, without duplicates, and add the jobs to the ledger."""
        from vitlab.jobs.compose import UNSET_RUN_DIR, resolve_config
        from vitlab.sweeps import ledger

        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        sweep = Path(self.config.hydra.sweep.dir)
        sweep.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, sweep / "multirun.yaml")
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        jobs, entries = dict[Path, Sequence[str]](), dict[str, Any]()
        for overrides in self.split_arguments(parsed, None)[0]:
            config = loader.load_sweep_config(self.config, list(overrides))
            HydraConfig.instance().set_config(config)  # as when the job runs
            name, entry = ledger.job_entry(config.hydra, resolve_config(config, UNSET_RUN_DIR))
            folder = sweep / entry["folder"]
            if folder in jobs:
                log.warning("%s is the same job as %s", overrides, jobs[folder])
            else:
                jobs[folder], entries[name] = overrides, entry
        HydraConfig.instance().cfg = None
        ledger.add_jobs(sweep, entries)
        return jobs

    def launch_rounds(self, jobs: dict[Path, Sequence[str]]) -> list[Sequence[JobReturn]]:
        from vitlab.sweeps import claim, ledger

        assert self.launcher is not None
        assert self.config is not None
        sweep = Path(self.config.hydra.sweep.dir)
        returns, failures = list[Sequence[JobReturn]](), list[JobReturn]()
        launched, pending, last_line = 0, list(jobs), ""
        started = set[Path]()  # while this process has run: those that end by trainer.max_time wait for the next one
        while pending:
            claim.exit_on_cancel(sweep)
            states = {folder: ledger.job_status(folder) for folder in pending}
            stopped = {folder for folder in started if states.get(folder) == "stopped"}
            pending = [folder for folder in pending if states[folder] not in ledger.DONE and folder not in stopped]
            started |= {folder for folder in pending if states[folder] == "running"}
            free = [folder for folder in pending if states[folder] != "running"]
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
                ends = self.launcher.launch([jobs[folder] for folder in batch], initial_job_idx=launched)
                launched += len(batch)
                started.update(batch)
                returns.append(ends)
                for folder, end in zip(batch, ends, strict=True):
                    if end.status != JobStatus.COMPLETED:
                        failures.append(end)
                        pending.remove(folder)
            if pending and not free:
                time.sleep(claim.POLL)
            claim.exit_on_cancel(sweep)  # a cancelled job would look like a failure
        for end in failures:
            _ = end.return_value  # raises
        return returns
