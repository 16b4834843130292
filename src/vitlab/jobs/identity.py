"""The identity of a job, and the names of jobs and sweeps.

A job is identified by a hash of what decides its result: its resolved configuration without paths, logging and devices.
What its sweep varies always counts, so `-m trainer.devices=1,2` is two jobs. Names consist of what varies, without `=`
and `,`, which have a meaning on Hydra's command line.

    runs/sweeps/digits-lr-seed-3fa29c1b/lr_0.001-seed_0-5be09d1c7a42
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vitlab.config.overrides import fixed_settings
from vitlab.config.schema import Node
from vitlab.data.source import loader_facts
from vitlab.jobs import fingerprint

LONGEST = 120  # characters of the choices in a name


def affects_result(path: str) -> bool:
    """Whether a setting decides a job's result: the precision does, the devices don't."""
    ignored = "|".join((*fingerprint.WITHOUT_EFFECT, *fingerprint.UP_TO_ROUNDING))
    return path == "trainer.precision" or not re.fullmatch(ignored, path)


def job_id(config: Node, choices: Mapping[str, str]) -> str:
    """Return 12 hexadecimal digits, equal for configurations that train the same.

    `choices` (what the sweep varies) count as well, if the configuration alone may not distinguish them.
    """
    values = fingerprint.flatten(config)
    decisive: Node = {path: plain_number(value) for path, value in values.items() if affects_result(path)}
    for key, value in choices.items():
        group = key.partition("/")[0]
        within = [path for path in values if path == group or path.startswith(f"{group}.")]
        if not within or not all(map(affects_result, within)):
            decisive[f"choice of {key}"] = value
    return short_digest(decisive, 12)


def plain_number(value: Any) -> Any:
    """Return integers as floats: 1 and 1.0 are the same setting."""
    if isinstance(value, list):
        return [plain_number(item) for item in value]
    return float(value) if type(value) is int else value


def short_digest(value: Any, digits: int) -> str:
    """Return a hash of plain data, in hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=digits // 2).hexdigest()


def job_name(choices: Mapping[str, str], identity: str) -> str:
    """Return the name of a job's folder: `lr_0.001-seed_0-5be09d1c7a42`."""
    short = short_keys(choices)
    name = join_parts(f"{short[key]}_{value}" for key, value in choices.items())
    return f"{name}-{identity}" if name else identity


def sweep_name(subject: str, overrides: Iterable[str], varies: Iterable[str], sweeper: str) -> str:
    """Return a sweep's default name, the same for the same command, also if a key gets more values.

    It has the keys that vary and a hash of the fixed settings, in any order: `digits-lr-seed-3fa29c1b`.
    """
    keys, settings = sorted(varies), fixed_settings(overrides)
    fixed = {k: v for k, v in settings.items() if affects_result(k) and not k.startswith(("hydra.", "hydra/"))}
    name = join_parts([subject, *short_keys(keys).values()])
    return f"{name}-{short_digest({'fixed': fixed, 'varies': keys, 'sweeper': sweeper}, 8)}"


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return the last part of each key, or the key if that part is not unique."""
    last = {key: re.split(r"[./@]", key)[-1] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


def join_parts(parts: Iterable[str]) -> str:
    return "-".join(map(slugify, parts))[:LONGEST].strip("-_.")


def slugify(text: str) -> str:
    """Replace the characters with a meaning for a shell, a file system or Hydra's command line."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", text).strip("_.") or "_"


def sweep_subject(config: Node, varies: Iterable[str] = ()) -> str:
    """Return what a sweep is named after: its data set, unless that varies."""
    source = (config.get("data") or {}).get("source")
    if not source or any(key in ("data", "data.name") or key.startswith("data.source") for key in varies):
        return "sweep"
    return data_name(source)


def data_name(source: Mapping[str, Any]) -> str:
    """Return the name of a source: `digits`, a folder's name, `ylecun_mnist`."""
    target = str(source.get("_target_", "sweep"))
    label = loader_facts(target).label
    return label(source) if label else target.rsplit(".", 1)[-1]
