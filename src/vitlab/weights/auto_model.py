"""Fill a configuration from its weights: with `model=auto` the model and its image size, and always the preprocessing.

The source moves from `model.weights` to the group `weights`, so that `model` describes a network alone. The recorded
configuration is complete: a run is evaluated and resumed without its initial weights.
"""

from pathlib import Path
from typing import Any

from vitlab.config.schema import Node
from vitlab.config.signatures import defaults
from vitlab.runs.folder import UnreadableRun, find_run_dir, read_config

FROM_DATA = ("num_classes", "in_channels")
NETWORK = "vitlab.models.vit.VisionTransformer"
FALLBACK = 224  # the image size with which the rest is checked if the weights can't be read


def fill_from_weights(config: Node) -> Node:
    """A resolved configuration with the settings of its weights; `vitlab.cli.checks` reports unreadable ones."""
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
    if (record := resumed_model(config)) is not None:
        return fill_model(config, record["model"], record.get("data") or {}, auto)
    from vitlab.weights.open import open_weights

    requested = {key: value for key, value in network.items() if not key.startswith("_") and value is not None}
    size = as_size(options.get("image_size"))
    try:
        weights = open_weights(source, part=options.get("part"), image_size=size, requested=requested)
    except (ValueError, OSError, RuntimeError):
        return fill_image_size(config, FALLBACK) if auto else config
    data = {**weights.preprocessing.settings(), "augment": {"crop_fraction": weights.preprocessing.crop_fraction}}
    return fill_model(config, {**weights.architecture.arguments, "pre_logits_dim": None}, data, auto)


def resumed_model(config: Node) -> Node | None:
    """The configuration of the run that is resumed, if it began from the same weights."""
    resume = config.get("resume")
    folder = find_run_dir(Path(resume)) if isinstance(resume, str) and resume != "auto" else None
    try:
        record = read_config(folder) if folder is not None else {}
    except UnreadableRun:  # which is reported where the run is resumed
        return None
    same = (record.get("weights") or {}).get("source") == config["weights"]["source"]
    return record if record and same and isinstance(record.get("model"), dict) else None


def fill_model(config: Node, arguments: Node, data: Node, auto: bool) -> Node:
    """A configuration with a network's arguments, and settings of the data that it leaves open."""
    config = {**config}
    if auto:
        given = {key: value for key, value in config["model"].items() if value is not None or key != "image_size"}
        inferred = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items() if not k.startswith("_")}
        complete = {**defaults(NETWORK), **inferred, **given}
        config["model"] = {k: v for k, v in complete.items() if k not in FROM_DATA or k in given}
        config = fill_image_size(config, config["model"]["image_size"])
    if isinstance(node := config.get("data"), dict):
        config["data"] = merge_settings(node, data)
    return config


def fill_image_size(config: Node, size: Any) -> Node:
    """A configuration of model=auto with an image size if it has none."""
    groups = [group for group in ("model", "data") if isinstance(config.get(group), dict)]
    known = {"image_size": size, **{group: {"image_size": size} for group in groups}}
    return merge_settings(config, known) if config.get("image_size", "") is None else config


def merge_settings(node: Node, known: Node) -> Node:
    """A node with known values of the settings that it leaves open (null)."""
    merged = dict(node)
    for key, value in known.items():
        if isinstance(value, dict) and isinstance(node.get(key), dict):
            merged[key] = merge_settings(node[key], value)
        elif key in node and node[key] is None:
            merged[key] = value
    return merged


def as_size(value: Any) -> int | tuple[int, int] | None:
    """A size from YAML or Python; None for other values, which the checks report."""
    if isinstance(value, int):
        return value
    is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, int) for side in value)
    return (value[0], value[1]) if is_pair else None
