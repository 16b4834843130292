"""Which jobs of a sweep are the same, and what a job and a sweep are called.

A job is identified by what decides its result: its resolved configuration without paths, logging and devices, hashed.
What its sweep varies always counts, so that `-m trainer.devices=1,2` is two jobs. Names are made of what varies, and
hold no `=` nor `,`: Hydra's command line would read these as its own.

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

LONGEST = 120  # characters of a name that are made of choices


def affects_result(path: str) -> bool:
    """Whether a setting decides a job's result: a number's kind does, the devices it is computed on don't."""
    from vitlab.jobs import fingerprint

    ignored = "|".join((*fingerprint.WITHOUT_EFFECT, *fingerprint.UP_TO_ROUNDING))
    return path == "trainer.precision" or not re.fullmatch(ignored, path)


def job_id(config: Node, choices: Mapping[str, str]) -> str:
    """12 hexadecimal digits: equal for configurations that train the same.

    `choices` (what the sweep varies) count where the configuration alone may not tell them apart.
    """
    from vitlab.jobs import fingerprint

    values = fingerprint.flatten(config)
    decisive: Node = {path: plain_number(value) for path, value in values.items() if affects_result(path)}
    for key, value in choices.items():
        group = key.partition("/")[0]
        within = [path for path in values if path == group or path.startswith(f"{group}.")]
        if not within or not all(map(affects_result, within)):
            decisive[f"choice of {key}"] = value
    return short_digest(decisive, 12)


def plain_number(value: Any) -> Any:
    """1 and 1.0 are the same setting."""
    if isinstance(value, list):
        return [plain_number(item) for item in value]
    return float(value) if type(value) is int else value


def short_digest(value: Any, digits: int) -> str:
    """A hash of plain data, in hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=digits // 2).hexdigest()


# --------------------------------------------------------------------------------------------------------------- names


def job_name(chosen: Mapping[str, str], identity: str) -> str:
    """The name of a job's folder: `lr_0.001-seed_0-5be09d1c7a42`."""
    short = short_keys(chosen)
    parts = [slugify(f"{short[key]}_{value}") for key, value in chosen.items()]
    return "-".join([*([name] if (name := "-".join(parts)[:LONGEST].strip("-_.")) else []), identity])


def sweep_name(subject: str, overrides: Iterable[str], varies: Iterable[str], sweeper: str) -> str:
    """A sweep's name where it was given none: the same for the same command, also where values are added to a key.

    It is made of the keys that vary and of what is fixed, in any order: `digits-lr-seed-3fa29c1b`.
    """
    keys = sorted(varies)
    fixed = {
        k: v
        for k, v in fixed_settings(overrides).items()
        if affects_result(k) and not k.startswith(("hydra.", "hydra/"))
    }
    name = "-".join(slugify(part) for part in [subject, *short_keys(keys).values()])[:LONGEST].strip("-_.")
    return f"{name}-{short_digest({'fixed': fixed, 'varies': keys, 'sweeper': sweeper}, 8)}"


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each key, or all of it where two have the same."""
    last = {key: re.split(r"[./@]", key)[-1] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


def slugify(text: str) -> str:
    """Without what a shell, a file system or Hydra's command line gives a meaning of its own."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", text).strip("_.") or "_"


def sweep_subject(config: Node, varies: Iterable[str] = ()) -> str:
    """What a sweep of this configuration is about, for a name: its data set, where that doesn't vary."""
    if any(key in ("data", "data.name") or key.startswith("data.source") for key in varies):
        return "sweep"
    source = (config.get("data") or {}).get("source") or {}
    return data_name(source) if source else "sweep"


def data_name(source: Mapping[str, Any]) -> str:
    """What the data of a source is called in names: `digits`, a folder's name, `ylecun_mnist`."""
    target = str(source.get("_target_", "sweep"))
    label = loader_facts(target).label
    return label(source) if label else target.rsplit(".", 1)[-1]
