"""Hydra's sweeper of a grid, with a ledger: what is finished isn't launched, and what others run is waited for.

Hydra only takes plugins from the package `hydra_plugins`, and imports all of it at each start: this file is light.
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
class Planned:
    """A job of the grid: how Hydra is told of it, and where it lies."""

    overrides: Sequence[str]
    folder: Path


class GridSweeper(BasicSweeper):
    """All combinations, in rounds: launched is what has still to be done and is free, until nothing has.

    A job that fails ends nothing else. The first failure is raised when all is done, and so ends the program with
    status 1. With `max_batch_size`, so many jobs at most are handed to the launcher at once.
    """

    def sweep(self, arguments: list[str]) -> Any:
        from vitlab.distributed import signals

        with signals.handle_signals(lambda outcome: None):
            return self.in_rounds(self.plan(arguments))

    def plan(self, arguments: list[str]) -> list[Planned]:
        """The grid's jobs, each once, written down in the ledger."""
        from vitlab.jobs.compose import UNSET_RUN_DIR, resolve_config
        from vitlab.sweeps import ledger

        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        planned: dict[str, Planned] = {}
        entries = {}
        for overrides in self.split_arguments(parsed, None)[0]:
            config = loader.load_sweep_config(self.config, list(overrides))
            HydraConfig.instance().set_config(config)  # as when the job is run
            name, entry = ledger.job_entry(config.hydra, resolve_config(config, UNSET_RUN_DIR))
            if name in planned:
                log.warning("%s is the same job as %s", overrides, planned[name].overrides)
                continue
            planned[name] = Planned(overrides, folder / entry["folder"])
            entries[name] = entry
        HydraConfig.instance().cfg = None
        ledger.add_jobs(folder, entries)
        return list(planned.values())

    def in_rounds(self, jobs: list[Planned]) -> list[Sequence[JobReturn]]:
        """Launches what is to be done until all of it is."""
        from vitlab.sweeps import claim, ledger

        assert self.launcher is not None
        assert self.config is not None
        returns: list[Sequence[JobReturn]] = []
        failures: list[JobReturn] = []
        launched, left = 0, list(jobs)
        told = ""
        while left:
            claim.exit_if_cancelled(sweep := Path(self.config.hydra.sweep.dir))
            states = {job.folder: ledger.job_status(job.folder) for job in left}
            left = [job for job in left if states[job.folder] not in ledger.DONE]
            free = [job for job in left if states[job.folder] != "running"]
            numbers = {
                "done": len(jobs) - len(left) - len(failures),
                "failed": len(failures),
                "run by other processes": len(left) - len(free),
                "to be started": len(free),
            }
            line = f"{len(jobs)} jobs: {', '.join(f'{number} {what}' for what, number in numbers.items() if number)}"
            if line != told:
                log.info(told := line)
            for first in range(0, len(free), size := self.max_batch_size or max(1, len(free))):
                batch = free[first : first + size]
                found = self.launcher.launch([job.overrides for job in batch], initial_job_idx=launched)
                launched += len(batch)
                returns.append(found)
                failed = [job for job, end in zip(batch, found, strict=True) if end.status != JobStatus.COMPLETED]
                failures += [end for end in found if end.status != JobStatus.COMPLETED]
                left = [job for job in left if job not in failed]
            if left and not free:
                time.sleep(claim.POLL)
            claim.exit_if_cancelled(sweep)  # goes before what that made of its jobs
        for end in failures:
            _ = end.return_value  # raises
        return returns
