"""Sweeps without trainings: jobs as Hydra hands them to a launcher, and folders as jobs leave them."""

import json
import logging
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext
from omegaconf import DictConfig

from vitlab.jobs import compose
from vitlab.runs import lock
from vitlab.runs.folder import CONFIG, RESULTS
from vitlab.sweeps import ledger
from vitlab.sweeps.launchers import local
from vitlab.sweeps.launchers.local import Job

RUNNING: dict[Path, Any] = {}  # the locks of jobs


def batch(task: Callable[[DictConfig], Any], folder: Path, *jobs: list[str], shared: list[str] = []) -> list[Job]:  # noqa: B006
    """The jobs that Hydra makes of overrides, on the CPU, with the test's own task."""
    root = logging.getLogger()
    former = [*root.handlers], root.level
    with hydra.initialize_config_dir(str(compose.CONF), version_base="1.3"):
        overrides = ["trainer.accelerator=cpu", f"hydra.sweep.dir={folder}", "hydra.mode=MULTIRUN", *shared]
        overrides.append("hydra.sweep.subdir=${hydra.job.num}")
        config = hydra.compose("train", overrides, return_hydra_config=True)
        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
        made = list(
            local.compose_jobs([[*overrides[:1], *job] for job in jobs], 0, context=context, task=task, config=config)
        )
    root.handlers, root.level = former  # Hydra has set up its own
    return made


def make_sweep(tmp_path: Path) -> Path:
    """Create a sweep of three jobs, none of which has started."""
    ledger.write_sweep(
        tmp_path, command="python src/train.py -m lr=1,2,3", varies=["lr"], objectives={"val/loss": "min"}
    )
    ledger.add_jobs(tmp_path, {f"j{i}": {"folder": f"job{i}", "settings": {"lr": str(i)}} for i in range(3)})
    return tmp_path


def write_job(sweep: Path, number: int, status: str, **results: Any) -> Path:
    """Write what a job's process writes."""
    folder = sweep / f"job{number}"
    folder.mkdir(exist_ok=True)
    RUNNING.pop(folder, None)
    if status == "running":
        RUNNING[folder] = lock.run_lock(folder, "job")
    record = {"status": status, "host": platform.node(), "process": os.getpid(), **results}
    (folder / RESULTS).write_text(json.dumps(record))
    (folder / CONFIG).write_text(yaml.safe_dump({"trainer": {"max_epochs": 8}}))
    return folder
