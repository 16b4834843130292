"""Check the settings of the data and of its batches."""

import math
from collections.abc import Iterator

from vitlab.config.schema import Node
from vitlab.config.view import ConfigView
from vitlab.data.source import Facts, images_to_train_on, loader_facts, loader_settings

AUGMENT = "vitlab.data.augment.Augment"


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
            yield (
                f"data.val_fraction={fraction} cuts {facts.train_samples} images into {facts.train_samples - held_out} "
                f"to train on and {held_out} to validate on: fewer than one of each of the {facts.num_classes} classes"
            )
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
    batch, parts, samples = view("batch_size", int), view.micro_batches(), train_samples(view)
    if batch is None or batch < 1:
        return
    if batch < parts:
        yield (
            f"batch_size={batch} is for all devices together and leaves nothing for some of {parts} parts "
            f"({view.ranks()} processes x trainer.accumulate_grad_batches); the least is {parts}"
        )
    elif samples is not None and parts > samples:
        yield f"batch_size={batch}: {samples} images can't be shared by {parts} processes and accumulated parts"
    elif samples is not None and batch > samples and view("data.drop_last", bool):
        yield f"batch_size={batch} is more than the {samples} images to train on, and data.drop_last drops them all"
