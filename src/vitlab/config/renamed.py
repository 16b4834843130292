"""Earlier names of targets and settings, in saved runs and on command lines, and their current names."""

from collections.abc import Mapping
from typing import Any

SETS = ("digits", "mnist", "fake", "shards", "image_folder", "huggingface")  # each in a module of its name
TARGETS = {
    "vitlab.vit.VisionTransformer": "vitlab.models.vit.VisionTransformer",
    "vitlab.baselines.timm_model": "vitlab.models.timm_model.timm_model",
    "vitlab.data.module.DataModule": "vitlab.data.datamodule.DataModule",
    **{f"vitlab.data.sources.{name}": f"vitlab.data.sets.{name}.{name}" for name in SETS},
    **{f"vitlab.data.sources.{name}": f"vitlab.data.sets.cifar.{name}" for name in ("cifar10", "cifar100")},
    "vitlab.data.sources.fashion_mnist": "vitlab.data.sets.mnist.fashion_mnist",
    "vitlab.optim": "vitlab.training.schedules",
    "vitlab.callbacks": "vitlab.training.monitor",
    "vitlab.training.monitor.ProgressBar": "vitlab.training.progress_bar.ProgressBar",
    "vitlab.checkpoints": "vitlab.training.checkpoints",
    "vitlab.nonfinite": "vitlab.training.nonfinite",
    "vitlab.tracking": "vitlab.runs.wandb",
    "vitlab.sharding.ModelParallel": "vitlab.distributed.fsdp.FullyShardedParallel",
    "vitlab.probing": "vitlab.evaluation.probes",
    "vitlab.pruning": "vitlab.sweeps.search.pruning",
}
SETTINGS = {
    "model.registers": "model.num_registers",
    "model.representation": "model.pre_logits_dim",
    "model.position": "model.pos_embed",
    "model.position_on_patches_only": "model.pos_embed_on_patches_only",
    "model.position_on_registers": "model.pos_embed_on_registers",
    "model.embedding": "model.patch_projection",
    "model.checkpointing": "model.activation_checkpointing",
    "callbacks.nonfinite.limit": "callbacks.nonfinite.max_skipped_steps",
    "callbacks.ema.multi_avg_fn.decay": "callbacks.ema.decay",
    "restarts": "max_restarts",
    "retries": "max_failures_per_job",
}
REMOVED = {
    "callbacks.nonfinite.dirpath": "the message names the first module whose output isn't finite",
    "callbacks.nonfinite.max_captures": "the message names the first module whose output isn't finite",
    "on_out_of_memory": "an out-of-memory error names the trainer.accumulate_grad_batches that fits",
    "data.source.max_pixels": "src/prepare.py packs images at a smaller size",
    "data.source.streaming": "the set is downloaded; src/prepare.py packs it into shards for object storage",
    "data.source.verify": "`python src/prepare.py verify data_dir=FOLDER` compares all checksums",
}


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
