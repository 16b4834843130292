"""Which settings decide what a run trains, and how two configurations differ in them."""

import re
from typing import TYPE_CHECKING, Any

from vitlab.config.schema import Node

if TYPE_CHECKING:
    from vitlab.data.datamodule import DataModule

# What may differ between two runs that train the same, bit for bit ...
WITHOUT_EFFECT = (
    r"run_dir|resume|sweep|max_failures_per_job|name|logger|logger\..*|max_restarts|data_dir|weights\.strict",
    r"data\.(num_workers|eval_batch_size|source\.(data_dir|cache_dir|cache_gb|verify)|skipped_file|scan)",
    r"callbacks\.(last|progress|nonfinite|pruning)(\..*)?|callbacks\.best\.keep|callbacks\.\w+\.dirpath",
    r"classifier\.metrics(\..*)?|trainer\.(enable_\w+|log_every_n_steps|profiler|num_sanity_val_steps)",
)
# ... and what changes no more than the order in which numbers are added up.
UP_TO_ROUNDING = (
    r"trainer\.(accelerator|devices|num_nodes|accumulate_grad_batches|strategy|strategy\..*|precision|benchmark)",
    r"trainer\.deterministic|compile|model\.(checkpointing|embedding|fused_attention)",
)
# Of the model's settings, those that are no part of what it computes once it is trained.
TRAINING_OF_MODEL = (
    r"model\.(\w*dropout|drop_path|checkpointing|embedding|fused_attention|\w*drop_\w*rate|\w*drop_rate)"
)
# What the optimizer's groups follow from.
GROUPED_BY = ("layer_decay", "head_lr_factor", "freeze")


# ----------------------------------------------------------------------------------------------- the same run, or not


def training_settings(config: Node) -> dict[str, Any]:
    """The part of a configuration that decides what is trained, by dotted paths."""
    ignored = re.compile("|".join((*WITHOUT_EFFECT, r"trainer\.accumulate_grad_batches")))
    return {path: value for path, value in flatten(config).items() if not ignored.fullmatch(path)}


def flatten(config: Node, path: str = "") -> dict[str, Any]:
    """Values by dotted paths."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flatten(value, f"{path}{key}.")
        else:
            found[f"{path}{key}"] = value
    return found


def setting_changes(before: Node, after: Node) -> list[str]:
    """What differs between two configurations, and what comes of it; what has no effect on the training comes last.

    `optimizer.lr: 0.1 -> 0.2 (trains otherwise)`
    """
    old, new = flatten(before), flatten(after)
    found: dict[str, list[str]] = {"trains otherwise": [], "the same up to rounding": [], "no effect on training": []}
    for path in dict.fromkeys([*old, *new]):
        if path in ("run_dir", "resume") or old.get(path) == new.get(path):
            continue
        effect = "trains otherwise"
        if re.fullmatch("|".join(UP_TO_ROUNDING), path):
            effect = "the same up to rounding"
        if re.fullmatch("|".join(WITHOUT_EFFECT), path):
            effect = "no effect on training"
        found[effect].append(f"{path}: {format_setting(path, old)} -> {format_setting(path, new)} ({effect})")
    return [line for lines in found.values() for line in lines]


def format_setting(path: str, values: dict[str, Any]) -> str:
    """A value, or that there is none."""
    return str(values[path]) if path in values else "(not there)"


def run_identity(config: Node, datamodule: "DataModule", run_id: str | None = None) -> Node:
    """What a checkpoint says of its run: configuration, data, how images are prepared, and wandb's id for it."""
    prepared = datamodule.preprocessing()
    return {"config": config, "data": datamodule.fingerprint(), "preprocessing": prepared, "wandb": run_id}


def incompatibilities(before: Node, after: Node) -> list[str]:
    """Why a checkpoint of the one identity can't be gone on from with the other: another network, other data."""
    old, new = (
        flatten(before["config"].get("model") or {}, "model."),
        flatten(after["config"].get("model") or {}, "model."),
    )
    found = [
        f"{path}: {format_setting(path, old)} in the checkpoint, {format_setting(path, new)} now"
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path) and not re.fullmatch(TRAINING_OF_MODEL, path)
    ]
    begun = [((identity["config"].get("weights") or {}).get("source")) for identity in (before, after)]
    if begun[0] != begun[1]:  # its weights are loaded where training begins, and never again
        found.append(f"model.weights: {begun[0]} in the checkpoint, {begun[1]} now")
    # what an optimizer's groups are is taken up with its state: other rates would be believed, and not used
    groups = [identity["config"].get("classifier") or {} for identity in (before, after)]
    for key in GROUPED_BY:
        if all(key in group for group in groups) and groups[0][key] != groups[1][key]:
            found.append(f"classifier.{key}: {groups[0][key]} in the checkpoint's optimizer, {groups[1][key]} now")
    for key in dict.fromkeys([*before["data"], *after["data"]]):
        one, two = before["data"].get(key), after["data"].get(key)
        counts = key.replace("digest", "images")
        if one == two or (key.endswith("digest") and before["data"].get(counts) != after["data"].get(counts)):
            continue
        what = "differ, though they are as many" if key.endswith("digest") else f"{one} in the checkpoint, {two} now"
        found.append(f"data: {counts if key.endswith('digest') else key}: {what}")
    return found
