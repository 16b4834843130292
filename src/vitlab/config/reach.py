"""How far allowed parts reach: the addresses that they call, and the files that they write, if a configuration says so.

A configuration from somebody else could use a logger to send your results and your key to an address of its own, or a
log file with a format of its own to write a start script. What does that is refused unless the user names it on the
command line or in `VITLAB_ALLOW`.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from vitlab.config import definitions

SENDS = "it sends results, with your key, to an address that a configuration may choose"
NEEDLESS = "no experiment needs it, and it downloads, serves or writes more than results"
# Parts, by where they are defined, that only the user may choose.
CHOSEN_BY_NAME = {
    **{f"lightning.pytorch.loggers.{kind}": SENDS for kind in ("comet", "litlogger", "mlflow", "neptune", "wandb")},
    "lightning.pytorch.strategies.deepspeed": SENDS,  # its own monitors
    "lightning.pytorch.callbacks.spike": "it overwrites a file of any name",
    **{f"lightning.pytorch.{kind}": NEEDLESS for kind in ("cli", "demos", "serve", "profilers.xla")},
    "hydra.experimental.callbacks.PickleJobInfoCallback": NEEDLESS,
}
NO_URLS = ("lightning", "vitlab.training", "vitlab.runs")  # packages whose parts write to folders of this machine
# Hydra's own; with another name and format, a log would be a file of any content
LOG_FILES = ("${hydra.runtime.output_dir}/${hydra.job.name}.log", "hydra-${hydra.job.name}.log")
# Addresses of the user's choice, and the values that stay on this machine.
ADDRESSES = {"launcher.address": r"auto|local", "sweeper.storage": r"sqlite:///.*"}


def reason_to_name(path: str) -> str | None:
    """Why only the user may choose the part that is defined at a path; None if a configuration may."""
    reasons = (reason for part, reason in CHOSEN_BY_NAME.items() if path == part or path.startswith(f"{part}."))
    return next((f"{reason}; choose it on the command line" for reason in reasons), None)


def named_by_user(overrides: Iterable[str], targets: Iterable[str]) -> Iterator[str]:
    """What a command line's own overrides choose of this: targets, and the settings of addresses."""
    for target in targets:
        definition = definitions.find(target) if target.startswith(("lightning.", "hydra.")) else None
        if definition is not None and reason_to_name(f"{definition.module}.{definition.name}"):
            yield target
    for line in overrides:
        if (key := line.lstrip("+").partition("=")[0]) in (f"hydra.{setting}" for setting in ADDRESSES):
            yield key


def url_settings(node: dict[str, Any]) -> list[str]:
    """The settings of a part that are URLs where it writes or reads files of this machine."""
    urls = [str(key) for key, value in node.items() if isinstance(value, str) and ("://" in value or "::" in value)]
    definition = definitions.find(node["_target_"]) if urls and isinstance(node["_target_"], str) else None
    module = definition.module if definition else ""
    return urls if any(module == package or module.startswith(f"{package}.") for package in NO_URLS) else []


def names_database(value: Any) -> bool:
    """Whether a node of vitlab's is to connect to a database server: a search gives its own to its trials."""
    storage = value.get("storage") if isinstance(value, dict) else None
    is_ours = isinstance(storage, str) and str(value.get("_target_")).startswith(("vitlab.", "hydra_plugins."))
    return is_ours and not re.fullmatch(ADDRESSES["sweeper.storage"], storage or "")


def hydra_reason(path: str, value: str) -> str | None:
    """Why a text in the node `hydra` is refused; None if it isn't."""
    part, _, key = path.removeprefix("hydra.").partition(".")
    setting = f"{part}.{key}"
    if setting in ADDRESSES and not re.fullmatch(ADDRESSES[setting], value):
        return "it names a server, which would get your credentials; choose it on the command line"
    if part in ("hydra_logging", "job_logging") and key.endswith("filename") and value not in LOG_FILES:
        return f"logging would write what it likes to that file; use {LOG_FILES[0]}"
    if (part in ("launcher", "run", "sweep") or setting == "job.name") and not value.isprintable():
        return "it has control characters, which could end a line of a batch script; remove them"
    if part == "searchpath" and value.startswith("pkg://"):
        return "Hydra would import that package; use file://FOLDER"
    return None
