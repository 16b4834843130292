"""Load a network's weights from a run's checkpoint, with its configuration."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from vitlab.config import allowlist
from vitlab.config.schema import Node, arguments_of, resolve
from vitlab.config.signatures import defaults
from vitlab.models.vit import VisionTransformer
from vitlab.runs import folder
from vitlab.storage import safe_load

Kind = Literal["vit", "timm", "other"]
NETWORK = "network."  # prefix of the network's tensors in a checkpoint
STATES = {"ema": "state_dict", "raw": "current_model_state"}  # Lightning's keys in a checkpoint with averages
NOT_BUILT = "pretrained"  # an argument that would download weights, which the checkpoint's would replace


class CheckpointWeights(NamedTuple):
    """The network's weights in a checkpoint."""

    run: Path
    file: Path
    chosen: str | None  # ema or raw; None if the checkpoint has no averages
    state: dict[str, Tensor]
    content: dict[str, Any]
    config: Node  # of the run
    kind: Kind
    arguments: Node  # of the network's constructor, including defaults


def load_weights(run: Path, checkpoint: str, part: str | None) -> CheckpointWeights:
    """Load the network's weights from a run's checkpoint; tensors are read on first use.

    `part`: `ema` or `raw`, in a checkpoint with both; None: the tested ones, the averages if there are any. Raises
    `OSError` for a missing or damaged file, `ValueError` without averages, `allowlist.NotTrusted` for other classes.
    """
    file = folder.checkpoint_file(run, checkpoint)
    if not file.is_file():
        raise FileNotFoundError(f"checkpoint={checkpoint}: {run}/checkpoints has no {file.name}")
    safe_load.verify_checkpoint(file)
    content = safe_load.load_checkpoint(file)
    both = STATES["raw"] in content
    if part is not None and not both:
        remedy = "(averages need callbacks=ema); leave part out"
        raise ValueError(f"part={part}: {file} has only one set of weights {remedy}")
    chosen = (part or "ema") if both else None
    state = content[STATES[chosen] if chosen else "state_dict"]
    if not {"config", "data", "preprocessing"} <= (content.get("vitlab") or {}).keys():
        raise ValueError(f"checkpoint={checkpoint}: {file} has no configuration, classes and preprocessing of vitlab")
    config = content["vitlab"]["config"]
    network = {name.removeprefix(NETWORK): tensor for name, tensor in state.items() if name.startswith(NETWORK)}
    kind, arguments = constructor_arguments(config["model"], network)
    return CheckpointWeights(run, file, chosen, network, content, config, kind, arguments)


def constructor_arguments(node: Node, state: dict[str, Tensor]) -> tuple[Kind, Node]:
    """The kind of a network and its constructor's arguments, including those inferred from the data."""
    allowlist.require_allowed(node, "model")  # a checkpoint's configuration isn't checked before the start
    target = resolve(node["_target_"])
    given = {name: value for name, value in arguments_of(node).items() if name != NOT_BUILT}
    if target is VisionTransformer:
        usual = {k: v for k, v in defaults(node["_target_"]).items() if k[0] != "_"}
        inferred = {"num_classes": len(state["head.weight"]), "in_channels": state["patch_embed.proj.weight"].shape[1]}
        return "vit", usual | given | inferred
    return ("timm" if target.__module__ == "vitlab.models.timm_model" else "other"), given
