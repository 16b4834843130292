"""Which settings decide what a run trains, and how two configurations differ in them."""

import re
from typing import TYPE_CHECKING, Any

from vitlab.config.schema import Node

if TYPE_CHECKING:
    from vitlab.data.datamodule import DataModule

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
# settings of the model that a trained network no longer depends on
TRAINING_OF_MODEL = (
    r"model\.(init|head_std|head_bias|\w*dropout|drop_path\w*|\w*drop_\w*rate|\w*drop_rate)",
    r"model\.(activation_checkpointing|patch_projection|fused_attention)",
)
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
    changes = []
    for path, (old, new) in differences(before, after).items():
        effect = 0
        if re.fullmatch("|".join(UP_TO_ROUNDING), path):
            effect = 1
        if re.fullmatch("|".join(WITHOUT_EFFECT), path):
            effect = 2
        if path not in ("run_dir", "resume"):
            changes.append((effect, f"{path}: {old} -> {new} ({EFFECTS[effect]})"))
    return [line for _, line in sorted(changes, key=lambda change: change[0])]


def differences(before: Node, after: Node, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the values that differ, before and after, by dotted paths."""
    old, new = flatten(before, prefix), flatten(after, prefix)
    differ = [path for path in dict.fromkeys([*old, *new]) if old.get(path) != new.get(path)]
    return {path: (old.get(path, "(not set)"), new.get(path, "(not set)")) for path in differ}


def run_identity(config: Node, datamodule: "DataModule", run_id: str | None = None) -> Node:
    """Return what a checkpoint records of its run: configuration, data, preprocessing, and the id of its wandb run."""
    preprocessing = datamodule.preprocessing()
    return {"config": config, "data": datamodule.fingerprint(), "preprocessing": preprocessing, "wandb": run_id}


def incompatibilities(before: Node, after: Node) -> list[str]:
    """Return why a checkpoint of the identity `before` can't be resumed as `after`: another network or other data."""
    configs = before["config"], after["config"]
    was, now = (config.get("model") or {} for config in configs)
    lines = [
        f"{path}: {old} in the checkpoint, {new} now"
        for path, (old, new) in differences(was, now, "model.").items()
        if not re.fullmatch("|".join(TRAINING_OF_MODEL), path)
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
