"""Check the data, its batches, and the network: its sizes, its weights, its frozen parts.

torch is imported only for checks that need weights or a network.
"""

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.config import definitions, signatures
from vitlab.config.schema import ConfigView, Node, arguments_of, child_nodes, format_value, resolve, suggest
from vitlab.data.source import Facts, images_to_train_on, loader_facts, loader_settings
from vitlab.models.vit_validation import combination_problems, nearest, pair
from vitlab.weights import auto_model

if TYPE_CHECKING:
    from torch import nn

VIT, TIMM = "vitlab.models.vit.VisionTransformer", "vitlab.models.timm_model.timm_model"
AUGMENT = "vitlab.data.augment.Augment"


def model_problems(view: ConfigView) -> Iterator[str]:
    facts, target = facts_of(view), view("model._target_", str)
    for key, known in (("num_classes", facts.num_classes), ("in_channels", facts.channels)):
        value = view(f"model.{key}", int)
        if value is not None and known is not None and value != known:
            has = f"{known} {key.partition('_')[2]}"
            yield f"model.{key}={value}, but the data has {has}; leave model.{key} out to take the data's"
    if target == VIT:
        usual = signatures.defaults(VIT)
        given = {
            k: v for k, v in arguments_of(view.config["model"]).items() if k in usual and f"model.{k}" not in view.bad
        }
        for line in combination_problems({**usual, **given}):
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
        yield from stored_weights_problems(source, options, view)


def stored_weights_problems(source: str, options: Node, view: ConfigView) -> Iterator[str]:
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


def facts_of(view: ConfigView) -> Facts:
    """Facts about the data set, without loading it."""
    return loader_facts(view("data.source._target_", str))


def source_settings(view: ConfigView) -> Node | None:
    """The settings of the data's loader; None if they have a problem."""
    source = view("data.source", dict)
    return None if source is None or view.has_problem("data.source") else loader_settings(source)


def train_samples(view: ConfigView) -> int | None:
    """Training images without those of validation; None if that is known only after loading."""
    facts, settings, fraction = facts_of(view), source_settings(view), view("data.val_fraction", float)
    if view.samples is not None or fraction is None or (facts.count and view("data.on_error", str) == "skip"):
        return view.samples
    samples, has_validation = (facts.train_samples, False) if settings is None else facts.size(settings)
    if samples is not None:
        view.samples = images_to_train_on(samples, has_validation, fraction, view("data.max_train_samples", int))
    return view.samples


def data_problems(view: ConfigView) -> Iterator[str]:
    fraction, facts = view("data.val_fraction", float), facts_of(view)
    if fraction and facts.train_samples and facts.num_classes:
        held_out = math.ceil(facts.train_samples * fraction)
        if held_out < facts.num_classes or facts.train_samples - held_out < facts.num_classes:
            parts = f"{facts.train_samples - held_out} to train on and {held_out} to validate on"
            few = f"fewer than one of each of the {facts.num_classes} classes"
            yield f"data.val_fraction={fraction} cuts {facts.train_samples} images into {parts}: {few}"
    name = (view("data.source._target_", str) or "").rpartition(".")[2]
    if view("data.scaled_decoding", bool) and facts.in_memory:
        yield f"data.scaled_decoding=true is for JPEG files, and {name} is stored in memory; leave it out"
    elif view("data.scaled_decoding", bool) and (crop := view("data.augment.crop", str)) in ("simple", "none"):
        yield f"data.scaled_decoding=true has no effect with data.augment.crop={crop}; use inception, or leave it out"
    if not view("data.augment.mixup") and not view("data.augment.cutmix"):
        for name, off in (("mix_mode", "batch"), ("mix_off_epoch", None)):
            if (value := view(f"data.augment.{name}", int | str)) not in (None, off):
                yield f"data.augment.{name}={value} has no effect without mixing; set data.augment.mixup or cutmix"
    if view("data.on_error", str) == "skip":
        if facts.in_memory:
            yield f"data.on_error=skip is for image folders, and {name} is none; leave it out"
        elif view("data.scan", str) == "none":
            yield "data.on_error=skip decodes every image beforehand, which data.scan=none forbids; leave one out"


def size_problems(view: ConfigView) -> Iterator[str]:
    schedule, end = view("data.size_schedule", dict) or {}, view("trainer.max_epochs", int) or -1
    patch = view("model.patch_size", int | tuple[int, int])
    for start, size in schedule.items():
        if type(start) is not int or start < 0 or size < 1:
            yield f"data.size_schedule={schedule} has {start}: {size}; set sizes by epoch, such as {{0: 160, 60: 192}}"
        elif 0 < end <= start:
            yield f"data.size_schedule has {size} after {start} epochs, and trainer.max_epochs={end}; set it earlier"
        for side in {*pair(patch)} if patch else ():
            if size % max(1, side):
                yield f"data.size_schedule: {size} is not a multiple of model.patch_size={side}; {nearest(size, side)}"


def augment_problems(view: ConfigView) -> Iterator[str]:
    """What the constructor says of settings of the augmentation that don't go together."""
    settings = view("data.augment", dict) or {}
    combined = any(settings.get(name) for name in ("crop", "crop_interpolation", "randaugment_std"))
    combined |= settings.get("crop_antialias") is False  # torch is imported for these alone
    if combined and settings.get("_target_") == AUGMENT and not view.has_problem("data.augment"):
        from vitlab.data.augment import Augment

        try:
            Augment(**{key: value for key, value in settings.items() if key != "_target_"})
        except ValueError as error:
            yield from str(error).splitlines()


def source_problems(view: ConfigView) -> Iterator[str]:
    problems, settings = facts_of(view).problems, source_settings(view)
    if problems is not None and settings is not None:
        yield from problems(**settings)


def batch_problems(view: ConfigView) -> Iterator[str]:
    batch, parts, samples = view("batch_size", int), view.ranks(), train_samples(view)
    parts *= view("trainer.accumulate_grad_batches", int) or 1
    if batch is None or batch < 1:
        return
    if batch < parts:
        why = f"{parts} parts ({view.ranks()} processes x trainer.accumulate_grad_batches); the least is {parts}"
        yield f"batch_size={batch} is for all devices together and leaves nothing for some of {why}"
    elif samples is not None and parts > samples:
        yield f"batch_size={batch}: {samples} images can't be shared by {parts} processes and accumulated parts"
    elif samples is not None and batch > samples and view("data.drop_last", bool):
        yield f"batch_size={batch} is more than the {samples} images to train on, and data.drop_last drops them all"
