"""The identity of a job: which settings decide what it trains; and the names of jobs, sweeps and models.

A job is identified by a hash of what decides its result: its resolved configuration without paths, logging and devices.
What its sweep varies always counts, so `-m trainer.devices=1,2` is two jobs. Names consist of what varies, without `=`
and `,`, which have a meaning on Hydra's command line.

    runs/sweeps/digits-lr-seed-3fa29c1b/lr_0.001-seed_0-5be09d1c7a42
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from vitlab.config.overrides import fixed_settings
from vitlab.config.schema import Node
from vitlab.data.source import loader_facts
from vitlab.models.vit_validation import SIZES

if TYPE_CHECKING:
    from vitlab.data.datamodule import DataModule

LONGEST = 120  # characters of the choices in a name
# settings that may differ between two runs with the same weights, bit for bit
WITHOUT_EFFECT = (
    r"run_dir|resume|sweep|max_failures_per_job|name|report|logger|logger\..*|max_restarts|data_dir|weights\.strict",
    r"data\.(num_workers|eval_batch_size|source\.(data_dir|cache_dir|cache_gb|verify)|skipped_file|scan)",
    r"callbacks\.(last|progress|nonfinite|pruning)(\..*)?|callbacks\.best\.keep|callbacks\.\w+\.dirpath",
    r"classifier\.metrics(\..*)?|trainer\.(enable_\w+|log_every_n_steps|profiler|num_sanity_val_steps)",
)
# settings that only change the order in which numbers are added
UP_TO_ROUNDING = (
    r"trainer\.(accelerator|devices|num_nodes|accumulate_grad_batches|strategy|strategy\..*|precision|benchmark)",
    r"trainer\.deterministic|compile|model\.(activation_checkpointing|patch_projection|fused_attention)",
)
# further settings of the model that a trained network no longer depends on
TRAINING_OF_MODEL = r"model\.(init|head_std|head_bias|\w*dropout|drop_path\w*|\w*drop_\w*rate|\w*drop_rate)"
EFFECTS = ("changes the training", "the same up to rounding", "no effect on training")
# settings that decide the optimizer's parameter groups
GROUPED_BY = ("layer_decay", "head_lr_factor", "decay_all", "freeze")


def training_settings(config: Node) -> dict[str, Any]:
    """Return the settings that decide what is trained, by dotted paths."""
    ignored = re.compile("|".join((*WITHOUT_EFFECT, r"trainer\.accumulate_grad_batches")))
    return {path: value for path, value in flatten(config).items() if not ignored.fullmatch(path)}


def flatten(config: Node, path: str = "") -> dict[str, Any]:
    """Return values by dotted paths."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= flatten(value, f"{path}{key}.") if isinstance(value, dict) and value else {f"{path}{key}": value}
    return values


def setting_changes(before: Node, after: Node) -> list[str]:
    """Return the differences of two configurations with their effects, those without effect on training last.

    `optimizer.lr: 0.1 -> 0.2 (changes the training)`
    """
    pairs = {path: pair for path, pair in differences(before, after).items() if path not in ("run_dir", "resume")}
    effects = {path: EFFECTS[setting_effect(path)] for path in sorted(pairs, key=setting_effect)}
    return [f"{path}: {pairs[path][0]} -> {pairs[path][1]} ({effect})" for path, effect in effects.items()]


def setting_effect(path: str) -> int:
    """Return the index of a setting's effect in `EFFECTS`."""
    return 2 if re.fullmatch("|".join(WITHOUT_EFFECT), path) else bool(re.fullmatch("|".join(UP_TO_ROUNDING), path))


def differences(before: Node, after: Node, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the values that differ, before and after, by dotted paths."""
    old, new = flatten(before, prefix), flatten(after, prefix)
    differ = [path for path in dict.fromkeys([*old, *new]) if old.get(path) != new.get(path)]
    return {path: (old.get(path, "(not set)"), new.get(path, "(not set)")) for path in differ}


def run_identity(config: Node, datamodule: "DataModule") -> Node:
    """Return what a checkpoint records of its run: configuration, data and preprocessing."""
    return {"config": config, "data": datamodule.fingerprint(), "preprocessing": datamodule.preprocessing()}


def incompatibilities(before: Node, after: Node) -> list[str]:
    """Return why a checkpoint of the identity `before` can't be resumed as `after`: another network or other data."""
    configs = before["config"], after["config"]
    was, now = (config.get("model") or {} for config in configs)
    lines = [
        f"{path}: {old} in the checkpoint, {new} now"
        for path, (old, new) in differences(was, now, "model.").items()
        if not re.fullmatch("|".join((TRAINING_OF_MODEL, *UP_TO_ROUNDING)), path)
    ]
    was, now = ((config.get("weights") or {}).get("source") for config in configs)
    if was != now:  # weights are loaded only where a training begins
        lines.append(f"model.weights: {was} in the checkpoint, {now} now")
    # the parameter groups are loaded with the optimizer's state: other rates would be shown, and not used
    was, now = (config.get("classifier") or {} for config in configs)
    for key in GROUPED_BY:
        if key in was and key in now and was[key] != now[key]:
            lines.append(f"classifier.{key}: {was[key]} in the checkpoint's optimizer, {now[key]} now")
    changes = differences(before["data"], after["data"])
    for key, (old, new) in changes.items():
        if not key.endswith("digest"):
            lines.append(f"data: {key}: {old} in the checkpoint, {new} now")
        elif (images := key.replace("digest", "images")) not in changes:
            lines.append(f"data: {images}: the number is the same, the images differ")
    return lines


def affects_result(path: str) -> bool:
    """Whether a setting decides a job's result: the precision does, the devices don't."""
    ignored = "|".join((*WITHOUT_EFFECT, *UP_TO_ROUNDING))
    return path == "trainer.precision" or not re.fullmatch(ignored, path)


def job_id(config: Node, choices: Mapping[str, str]) -> str:
    """Return 12 hexadecimal digits, equal for configurations that train the same.

    `choices` (what the sweep varies) count as well, if the configuration alone may not distinguish them.
    """
    values = flatten(config)
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


def model_name(model: Any) -> str:
    """`vit_s16` for published sizes, `vit_64x4_p2` (width x depth) for others, the weights' name with model=auto, and
    the class's for other models.
    """
    if "model_name" in model:
        return str(model.model_name).replace("/", "_")
    if "dim" not in model and isinstance(source := OmegaConf.select(model, "weights"), str):  # model=auto
        last = Path(source).name or source
        return last.removeprefix("timm:").removesuffix(Path(last).suffix if Path(source).is_file() else "")
    if not all(key in model for key in ("patch_size", "dim", "depth", "heads")):
        return str(model._target_).rsplit(".", 1)[-1]
    patch = model.patch_size if isinstance(model.patch_size, int) else "x".join(map(str, model.patch_size))
    size = SIZES.get((model.dim, model.depth, model.heads))
    return f"vit_{size}{patch}" if size else f"vit_{model.dim}x{model.depth}_p{patch}"
