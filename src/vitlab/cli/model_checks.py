"""Check the network of a configuration: its sizes, its weights, its frozen parts.

torch is imported only for checks that need weights or a network.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.cli.data_checks import facts_of
from vitlab.config import definitions, signatures
from vitlab.config.schema import Node, child_nodes, format_value, resolve, suggest
from vitlab.config.view import ConfigView
from vitlab.models.vit_validation import check_arguments
from vitlab.weights import auto_model

if TYPE_CHECKING:
    from torch import nn

VIT, TIMM = "vitlab.models.vit.VisionTransformer", "vitlab.models.timm_model.timm_model"


def model_problems(view: ConfigView) -> Iterator[str]:
    facts, target = facts_of(view), view("model._target_", str)
    for key, known in (("num_classes", facts.num_classes), ("in_channels", facts.channels)):
        value = view(f"model.{key}", int)
        if value is not None and known is not None and value != known:
            has = f"{known} {key.partition('_')[2]}"
            yield f"model.{key}={value}, but the data has {has}; leave model.{key} out to take the data's"
    if target == VIT and not view.has_problem("model", "image_size"):
        given = arguments_of(view.config["model"])
        try:
            check_arguments({**signatures.defaults(VIT), **given})
        except ValueError as error:
            for line in str(error).splitlines():
                # an option of the class by its name in the configuration
                word = line.split("=")[0]
                yield line if word == "image_size" or word not in given else f"model.{line}"
        if given.get("pool") == "none":
            yield "model.pool=none gives logits for each token, which is not for training; use cls or avg"
    if view("model.drop_path_kept_only", bool) and (rate := view("model.drop_path", float)) is not None and rate <= 0.1:
        remedy = "it is for rates above 0.1; raise model.drop_path, or leave it out"
        yield f"model.drop_path_kept_only=true has no effect with model.drop_path={format_value(rate)}: {remedy}"
    name = view("model.model_name", str)
    if target == TIMM and name is not None and name.partition(".")[0] not in (names := timm_names()):
        yield f"model.model_name={name} is no timm model{suggest(name, names)}"
    elif target == TIMM and (options := view("model.options", dict)) and not child_nodes(options):
        try:
            outline(view.config["model"])
        except (AssertionError, TypeError, ValueError) as error:
            yield str(error) if isinstance(error, ValueError) else f"model.options={options}: {name}: {error}"


def arguments_of(node: Node) -> Node:
    """The arguments that a node passes to its target."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in node.items() if not k.startswith("_")}


def timm_names() -> list[str]:
    """Names of timm's models, from its source files: importing them imports torch."""
    names = []
    for folder in spec.submodule_search_locations or [] if (spec := definitions.find_spec("timm.models")) else []:
        for file in sorted(Path(folder).glob("*.py")):
            text = file.read_text()
            names += re.findall(r"^@register_model\s+def (\w+)", text, re.MULTILINE)
            renamed = re.search(r"^register_model_deprecations\(__name__, \{(.*?)\}\)", text, re.MULTILINE | re.DOTALL)
            names += re.findall(r"'(\w+)' *:", renamed[1]) if renamed else []
    return names


def weights_problems(view: ConfigView) -> Iterator[str]:
    source, options = view("weights.source"), view("weights", dict)
    if options is None or view.has_problem("weights"):
        return
    if source is None:
        if scores_head(view.config):
            yield "there are no weights whose own head could be scored; set model.weights=SOURCE, or probe=linear"
        for key in ("part", "image_size"):
            if (value := options.get(key)) is not None:
                yield f"weights.{key}={format_value(value)} is of no use without model.weights=SOURCE"
    elif not isinstance(source, str) or source == "???":
        remedy = "set a file, a folder, timm:NAME, hf:NAME or a run"
        yield f"model.weights={format_value(source)} names no weights; {remedy}"
    elif view("model._target_", str) != VIT:
        yield f"model.weights={source} is for vitlab's own model; use model=auto (model=timm has model.pretrained=true)"
    elif auto_model.resumed_model(view.config) is None:  # or the run goes on, and needs them no more
        yield from source_problems(source, options, view)


def source_problems(source: str, options: Node, view: ConfigView) -> Iterator[str]:
    """Problems of weights that can't be read or don't fit the model."""
    from vitlab.weights import load
    from vitlab.weights.open import open_weights

    given, size = arguments_of(view.config["model"]), auto_model.as_size(options.get("image_size"))
    try:
        weights = open_weights(source, part=options.get("part"), image_size=size, requested=given)
    except (ValueError, OSError, RuntimeError) as error:
        yield f"model.weights={source}: {error}"
        return
    if classes := facts_of(view).num_classes:
        given |= {"num_classes": classes}
    if view.has_problem("model", "image_size"):
        return
    with suppress(ValueError):  # a model that can't be, which another rule reports
        report = load.preview_report(given, weights)
        if scores_head(view.config) and (why := report.new.get("head.weight")):
            yield load.NO_HEAD.format(source=source, why=why)
        for problem in report.problems if options.get("strict", True) else ():
            yield f"model.weights={source} doesn't fit the model: {problem} (model=auto; or weights.strict=false)"


def scores_head(config: Node) -> bool:
    """Whether the head of weights from elsewhere is to be scored."""
    is_evaluation = "probe" in config and config.get("run") is None
    return is_evaluation and config["probe"] is None and config.get("model") is not None


def fine_tuning_problems(view: ConfigView) -> Iterator[str]:
    """Problems of freezing and layer decay; they need a network, so they are checked last."""
    decay, freeze = view("classifier.layer_decay", float), view("classifier.freeze", str | list[str])
    if not freeze and decay in (None, 1):
        return
    from vitlab.models import freezing

    if (network := outline(view.config["model"])) is None:
        return
    try:
        freezing.frozen_names(network, freeze if isinstance(freeze, str) else tuple(freeze or ()))
    except ValueError as error:
        yield str(error)
    if decay not in (None, 1) and not hasattr(network, "group_matcher"):
        yield f"classifier.layer_decay={format_value(decay)}: {type(network).__name__} has no group_matcher; use 1.0"


def loss_problems(view: ConfigView) -> Iterator[str]:
    """Settings of the loss that don't go together, and a teacher that can't be read or doesn't fit the data."""
    given, facts = view("classifier", dict) or {}, facts_of(view)
    names = ("target_threshold", "class_weights", "teacher", "distillation")
    if all(given.get(name) in (None, "none") for name in names):
        return
    from vitlab.training import distillation, losses

    threshold, weights, teacher, kind = (given.get(name) for name in names)
    yield from losses.loss_problems(given["loss"], facts.num_classes, given["label_smoothing"], threshold, weights)
    yield from distillation.distillation_problems(str(kind), teacher, facts.num_classes, facts.channels)


def outline(node: Node) -> "nn.Module | None":
    """The network of a node on the meta device; None for a user's own class."""
    import torch

    target, arguments = node.get("_target_"), arguments_of(node)
    if target == TIMM:
        arguments = {"in_channels": 3, "num_classes": 10, **arguments, "pretrained": False}
    elif target != VIT:
        return None
    with torch.device("meta"):
        network: nn.Module = resolve(target)(**arguments)
    return network
