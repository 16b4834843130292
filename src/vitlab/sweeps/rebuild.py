"""Rebuild a damaged `sweep.json` from the folders of its jobs."""

import re
from pathlib import Path
from typing import Any

from hydra.errors import HydraException

from vitlab.config.overrides import fixed_settings
from vitlab.config.schema import OBJECTIVES, Node, direction
from vitlab.jobs import identity
from vitlab.runs.folder import OVERRIDES, UnreadableRun, read_config, read_overrides

LOST = "the command that started it (sweep.json, which named it, was damaged)"


def is_ledger(head: Any) -> bool:
    """Whether the content of a `sweep.json` is complete."""
    jobs = head.get("jobs") if isinstance(head, dict) else None
    return isinstance(jobs, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("folder"), str) and isinstance(entry.get("settings"), dict)
        for entry in jobs.values()
    )


def rebuild_ledger(sweep: Path) -> Node:
    """Return the ledger with all jobs that were started, from their overrides; jobs that were only planned are lost."""
    settings, configs = dict[str, dict[str, str]](), list[Node]()
    for file in sorted(sweep.glob(f"*/{OVERRIDES}")):
        folder = file.parents[1]
        try:
            settings[folder.name] = fixed_settings(read_overrides(folder))
            configs.append(read_config(folder))
        except (OSError, UnreadableRun, HydraException):
            settings.setdefault(folder.name, {})  # its folder has a name and results still
    ignored = "|".join(identity.WITHOUT_EFFECT)
    keys = dict.fromkeys(key for values in settings.values() for key in values if not re.fullmatch(ignored, key))
    varies = [key for key in keys if len({values.get(key) for values in settings.values() if values}) > 1]
    jobs = {
        name.rpartition("-")[2]: {
            "folder": name,
            "settings": {k: v for k, v in values.items() if k in varies or identity.affects_result(k)},
        }
        for name, values in settings.items()
    }
    scores = [score for config in configs if isinstance(score := config.get("objective"), str)]
    score = next(iter(scores), OBJECTIVES[0])
    return {"command": LOST, "varies": varies, "objectives": {score: direction(score)}, "jobs": jobs}
