"""Earlier names of targets and settings, in saved runs and on command lines, and their current names."""

from collections.abc import Mapping
from typing import Any

from vitlab.config.tables import read_table

TABLES: dict[str, dict[str, str]] = read_table(__file__)
TARGETS, SETTINGS, REMOVED = TABLES["targets"], TABLES["settings"], TABLES["removed"]


def current_target(target: str) -> str:
    """The current name of a dotted path."""
    parent, _, name = target.rpartition(".")
    return TARGETS.get(target) or (f"{TARGETS[parent]}.{name}" if parent in TARGETS else target)


def current_config(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """A saved configuration with current names, without removed settings."""
    current: dict[str, Any] = {}
    for key, value in config.items():
        where = f"{path}{key}"
        if where in REMOVED and str(config.get("_target_", "vitlab.")).startswith("vitlab."):  # not a user's own
            continue
        if where == "data.source.shuffle_buffer" and "streaming" in config:  # of streaming, which was removed
            continue
        name = SETTINGS.get(where, where).rpartition(".")[2]
        if isinstance(value, Mapping):
            current[name] = current_config(value, f"{where}.")
        else:
            current[name] = current_target(value) if key == "_target_" and isinstance(value, str) else value
    return current


def current_override(line: str) -> str | None:
    """A saved override with current names; None if its setting was removed."""
    key, equals, value = line.partition("=")
    plain = key.lstrip("+~")
    if plain in REMOVED:
        return None
    return key.removesuffix(plain) + SETTINGS.get(plain, plain) + equals + current_target(value)
