"""What is wrong with the network that a configuration describes: its weights, its sizes, what of it is trained."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch

from vitlab import freezing
from vitlab.models.vit import VisionTransformer
from vitlab.reader import Reader
from vitlab.schema import Node, resolve, shown, suggest
from vitlab.weights import composing, loading
from vitlab.weights.opening import open_weights


def weights_problems(read: Reader) -> Iterator[str]:
    source, options = read("weights.source"), read("weights", dict)
    if options is None or any(bad.startswith("weights") for bad in read.bad):
        return
    if source is None:
        if scores_head(read.config):
            yield "probe=head scores the weights' own head, and there are no weights; set model.weights=SOURCE"
        for key in ("part", "image_size"):
            if (value := options.get(key)) is not None:
                yield f"weights.{key}={shown(value)} is of no use without model.weights=SOURCE"
        return
    if not isinstance(source, str) or source == "???":
        yield f"model.weights={shown(source)} names no weights; set a file, a folder, timm:NAME, hf:NAME or a run"
        return
    if read("model._target_", str) != "vitlab.models.vit.VisionTransformer":
        yield f"model.weights={source} is for vitlab's own model; use model=auto (model=timm has model.pretrained=true)"
        return
    if composing.recorded(read.config) is not None:
        return  # the run goes on, and needs them no more
    given = {
        k: tuple(v) if isinstance(v, list) else v for k, v in read.config["model"].items() if not k.startswith("_")
    }
    size = options.get("image_size")
    try:
        weights = open_weights(
            source, part=options.get("part"), image_size=tuple(size) if isinstance(size, list) else size, asked=given
        )
    except (ValueError, OSError, RuntimeError) as error:
        yield f"model.weights={source}: {error}"
        return
    facts = read.facts()
    if facts is not None and facts.num_classes:
        given |= {"num_classes": facts.num_classes}
    if any(bad.startswith(("model", "image_size")) for bad in read.bad):
        return
    with suppress(ValueError):  # a model that can't be, which is told elsewhere
        report = loading.foreseen(given, weights)
        if scores_head(read.config) and (why := report.anew.get("head.weight")):
            yield loading.NO_HEAD.format(source=source, why=why)
        for problem in report.problems if options.get("strict", True) else ():
            yield f"model.weights={source} doesn't fit the model: {problem} (model=auto; or weights.strict=false)"


def scores_head(config: Node) -> bool:
    """Whether it is weights from elsewhere whose own head is to be scored."""
    probe = config.get("probe")
    return "weights" in config and isinstance(probe, dict) and probe.get("_target_") == "vitlab.evaluation.probes.Head"


def model_problems(read: Reader) -> Iterator[str]:
    node, facts = read("model", dict), read.facts()
    if not node or "_target_" not in node:
        return
    for key, known, unit in (
        ("num_classes", facts.num_classes if facts else None, "classes"),
        ("in_channels", facts.channels if facts else None, "channels"),
    ):
        value = read(f"model.{key}", int)
        if value is not None and known is not None and value != known:
            yield f"model.{key}={value}, but the data has {known} {unit}; leave model.{key} out to take the data's"
    try:
        target = resolve(str(node["_target_"]))
    except ImportError:
        return  # already told
    if target is VisionTransformer and not any(bad.startswith("model.") for bad in read.bad):
        arguments: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in node.items() if not k.startswith("_")
        }
        try:
            with torch.device("meta"):
                VisionTransformer(**arguments)
        except (ValueError, TypeError) as error:
            for line in str(error).splitlines():
                # an option of the class by its name in the configuration
                word = line.split("=")[0]
                yield line if word == "image_size" or word not in node else f"model.{line}"
        if read("model.pool", str) == "none":
            yield "model.pool=none gives logits for each token, which is not for training; use cls or avg"
    elif target.__module__ == "vitlab.baselines":
        import timm

        name = read("model.model_name", str)
        if name is not None and not timm.is_model(name):
            yield f"model.model_name={name} is no timm model{suggest(name, timm.list_models())}"


def fine_tuning_problems(read: Reader) -> Iterator[str]:
    decay, factor = read("classifier.layer_decay", float), read("classifier.head_lr_factor", float)
    if decay is not None and not 0 < decay <= 1:
        yield f"classifier.layer_decay={shown(decay)} must be above 0 and at most 1 (off)"
    if factor is not None and not factor > 0:
        yield f"classifier.head_lr_factor={shown(factor)} must be above 0"
    freeze = read("classifier.freeze", str | list[str])
    if (freeze or decay not in (None, 1)) and (network := outline(read)) is not None:
        if freeze:
            try:
                freezing.frozen_names(network, freeze if isinstance(freeze, str) else tuple(freeze))
            except ValueError as error:
                yield str(error)
        if decay not in (None, 1) and not hasattr(network, "group_matcher"):
            yield f"classifier.layer_decay={shown(decay)}: {type(network).__name__} says no layers; use 1.0"


def outline(read: Reader) -> torch.nn.Module | None:
    """The network that `model` describes, without memory for its parameters; None where something is wrong with it, or
    it is somebody else's.
    """
    node = read("model", dict)
    if not node or any(bad.startswith(("model", "image_size")) for bad in read.bad):
        return None
    known = ("vitlab.models.vit.VisionTransformer", "vitlab.baselines.timm_model")
    if node.get("_target_") not in known:
        return None
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in node.items() if not k.startswith("_")}
    if node["_target_"] == known[1]:
        arguments = {"in_channels": 3, "num_classes": 10, **arguments, "pretrained": False}
    with torch.device("meta"):
        network: torch.nn.Module = resolve(node["_target_"])(**arguments)
    return network
