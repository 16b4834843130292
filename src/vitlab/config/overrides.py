"""Parse and write override lines in Hydra's grammar."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

NOT_A_CHOICE = ("sweep", "max_failures_per_job", "resume", "run_dir")


def parse_overrides(overrides: Iterable[str]) -> list[Override]:
    """Parse overrides as Hydra does. The jobs of a grid repeat the same lines, so each is parsed once."""
    return [parse_override(line) for line in overrides]


@lru_cache(maxsize=10_000)
def parse_override(line: str) -> Override:
    return OverridesParser.create().parse_override(line)


def swept_keys(overrides: Iterable[str], params: Mapping[str, Any] | None = None) -> list[str]:
    """The keys that a sweep varies, on its command line or in its sweeper's `params` or search space."""
    on_line = [o.key_or_group for o in parse_overrides(overrides) if o.is_sweep_override()]
    return list(dict.fromkeys([*(params or {}), *on_line]))


def as_single_run(overrides: Iterable[str]) -> list[str]:
    """The overrides of a sweep's job as those of a single run, also if an experiment's file defines a sweep."""
    kept = [line for line in overrides if not line.startswith("sweep=")]
    return [*kept, "hydra.mode=RUN", "sweep=null"] if any(line.startswith("experiment=") for line in kept) else kept


def fixed_settings(overrides: Iterable[str]) -> dict[str, str]:
    """Values that overrides set, by key, without those that a sweep varies and those that are no part of a job."""
    return {
        o.key_or_group: "~" if o.is_delete() else o.get_value_element_as_str()
        for o in parse_overrides(overrides)
        if not o.is_sweep_override() and o.key_or_group not in NOT_A_CHOICE
    }


def hydra_quote(path: Path) -> str:
    """Quote a path as a value in Hydra's override grammar."""
    return "'" + str(path).replace("'", "\\'") + "'"
