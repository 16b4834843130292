"""What weights decide in a configuration: with `model=auto` the model, its image size, and how images are prepared.

A composed configuration says `model.weights=SOURCE`. `completed` puts the source beside the other settings of the
group `weights`, so that `model` describes a network and no more, and fills in what was left to the weights. What a run
records is thus whole: it is evaluated, and gone on with, without its initial weights.
"""

from pathlib import Path
from typing import Any

from vitlab.config.schema import Node
from vitlab.config.signatures import defaults
from vitlab.runs.folder import read_config

MEASURED = ("num_classes", "in_channels")  # the data has them
NETWORK = "vitlab.models.vit.VisionTransformer"
FALLBACK = 224  # an image size to check the rest with, where the weights that would tell one can't be read


def fill_from_weights(config: Node) -> Node:
    """A resolved configuration with what its weights say; as it is where it has none.

    Where they can't be read nothing is filled in: `vitlab.cli.checks` tells why.
    """
    model = config.get("model")
    if not isinstance(model, dict) or "weights" not in model:
        return config
    source, network = model["weights"], {key: value for key, value in model.items() if key != "weights"}
    if source is None and "weights" not in config:
        return {**config, "model": network}
    options = config["weights"] if isinstance(config.get("weights"), dict) else {}
    if "run" in config and source in (None, "???") and set(network) == {"_target_", "image_size"}:
        return {**config, "model": None, "weights": {**options, "source": None}}  # evaluate.py: a run has its own model
    config = {**config, "model": network, "weights": {**options, "source": source}}
    auto = "dim" not in network and network.get("_target_") == NETWORK
    if not isinstance(source, str) or source == "???":
        return fill_image_size(config, FALLBACK) if auto else config
    if (before := resumed_model(config)) is not None:
        return fill_model(config, before["model"], before.get("data") or {}, auto)
    from vitlab.weights.open import open_weights

    asked = {key: value for key, value in network.items() if not key.startswith("_") and value is not None}
    try:
        weights = open_weights(
            source, part=options.get("part"), image_size=as_size(options.get("image_size")), asked=asked
        )
    except (ValueError, OSError, RuntimeError):
        return fill_image_size(config, FALLBACK) if auto else config
    prepared = weights.preprocessing
    data = {**prepared.settings(), "augment": {"crop_fraction": prepared.crop_fraction}}
    return fill_model(config, {**weights.architecture.arguments, "pre_logits_dim": None}, data, auto)


def resumed_model(config: Node) -> Node | None:
    """The configuration of the run that is gone on with, where it began from the same weights."""
    from vitlab.runs.folder import find_run_dir

    resume = config.get("resume")
    folder = find_run_dir(Path(resume)) if isinstance(resume, str) and resume != "auto" else None
    before = read_config(folder) if folder is not None else {}
    same = (before.get("weights") or {}).get("source") == config["weights"]["source"]
    return before if before and same and isinstance(before.get("model"), dict) else None


def fill_model(config: Node, arguments: Node, data: Node, auto: bool) -> Node:
    """A configuration with a network's arguments, and settings of the data, where it leaves them open."""
    config = {**config}
    if auto:
        given = {key: value for key, value in config["model"].items() if value is not None or key != "image_size"}
        found = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items() if not k.startswith("_")}
        whole = {**defaults(NETWORK), **found, **given}
        config["model"] = {k: v for k, v in whole.items() if k not in MEASURED or k in given}
        config = fill_image_size(config, config["model"]["image_size"])
    if isinstance(node := config.get("data"), dict):
        config["data"] = merge_settings(node, data)
    return config


def fill_image_size(config: Node, size: Any) -> Node:
    """A configuration of model=auto with an image size where it has none."""
    if config.get("image_size", "") is not None:
        return config
    config = {**config, "image_size": size}
    for group in ("model", "data"):
        if isinstance(node := config.get(group), dict) and node.get("image_size", "") is None:
            config[group] = {**node, "image_size": config["image_size"]}
    return config


def merge_settings(node: Node, known: Node) -> Node:
    """A node with what is known of the settings that it leaves open (null)."""
    found = dict(node)
    for key, value in known.items():
        if isinstance(value, dict) and isinstance(node.get(key), dict):
            found[key] = merge_settings(node[key], value)
        elif key in node and node[key] is None:
            found[key] = value
    return found


def as_size(value: Any) -> int | tuple[int, int] | None:
    """A size as YAML has it, as Python has it; None for what is none, which the checks tell."""
    if isinstance(value, int):
        return value
    is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, int) for side in value)
    return (value[0], value[1]) if is_pair else None
