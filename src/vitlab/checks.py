"""What is wrong with a configuration, before anything long starts: keys, types, and what one key demands of another.

Nothing here raises: every problem becomes a line, so that a user sees all of them at once. The components check
the same rules again, for those who build them without a configuration.
"""

import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from vitlab import identity, launch, model_checks, program_checks, trust
from vitlab.benchmarking import checks as benchmarking_checks
from vitlab.classifier import Classifier
from vitlab.data.packing import checks
from vitlab.optim import check_steps
from vitlab.reader import Reader
from vitlab.schema import Node, call_problems, fits, node_problems, nodes_in, resolve, shown, suggest
from vitlab.weights import loading

# Parameters that the program passes itself: they may be missing in the configuration.
SUPPLIED = {
    "model": ("num_classes", "in_channels"),
    "trainer": (),
    "data": (),
    "optimizer": ("params",),
    "schedule": ("optimizer", "total_steps"),
    "probe": (),
    # parts of the benchmark
    **dict.fromkeys(("networks", "training", "loading", "start", "scaling", "devices"), ()),
}
# Root keys that groups read, and nothing else: what says otherwise in a group would be believed by half of the program.
SHARED = ("data.image_size", "data.batch_size", "data.seed", "model.image_size")
# What can't be set where it seems to belong, because the program sets it, and what to do instead.
TAKEN = {
    "trainer.logger": "use the group logger",
    "trainer.callbacks": "use the group callbacks",
    "trainer.default_root_dir": "use hydra.run.dir",
    "classifier.network": "use the group model",
    "classifier.num_classes": "the data has it",
    "classifier.optimizer": "use the group optimizer",
    "classifier.schedule": "use the group schedule",
}
LONGEST_NAME = 255  # bytes, on the usual file systems
OBJECTIVES = ("val/acc", "val/acc5", "val/loss")


def problems(function: Callable[..., Any], config: Node, *, elsewhere: bool = False) -> list[str]:
    """Everything wrong with `function(**config)`, a resolved configuration of a command; `elsewhere`: for a cluster.

    What it may not call comes alone: nothing more is asked of such a configuration, and nothing of it imported.
    """
    if refused := trust.problems(config):
        return refused
    nodes = {k: v for k, v in config.items() if k in SUPPLIED and isinstance(v, dict) and "_target_" in v}
    found = call_problems("", {k: v for k, v in config.items() if k not in nodes}, function, supplied=nodes)
    for key, node in nodes.items():
        found += node_problems(key, node, SUPPLIED[key])
    if isinstance(config.get("weights"), dict):
        options = {key: value for key, value in config["weights"].items() if key != "source"}
        found += call_problems("weights", options, loading.network, supplied=("arguments", "source"))
    if isinstance(config.get("classifier"), dict):
        supplied = ("network", "num_classes", "optimizer", "schedule")
        found += call_problems("classifier", config["classifier"], Classifier, supplied=supplied)
    # a rule is only asked about values that nothing was wrong with so far: one mistake, one line
    bad = {setting(problem) for problem in found}
    read = Reader(config, bad, elsewhere=elsewhere)
    # a wrong root key is wrong again wherever it is read
    found = [problem for problem in found if problem.partition(".")[2] not in found]
    rules = (
        program_checks.evaluation_problems,
        program_checks.probe_problems,
        program_checks.doctor_problems,
        program_checks.export_problems,
        program_checks.replay_problems,
        program_checks.sweep_action_problems,
        sweep_problems,
        place_problems,
        trainer_problems,
        model_checks.weights_problems,
        model_checks.model_problems,
        model_checks.fine_tuning_problems,
        data_problems,
        checks.problems,
        batch_problems,
        schedule_problems,
        root_problems,
        benchmarking_checks.problems,
    )
    for rule in rules:
        more = list(rule(read))
        bad |= {setting(problem) for problem in more}
        found += more
    return found


def setting(problem: str) -> str:
    """The dotted path that a problem is about, which its line begins with."""
    return problem.split("=")[0].split(" ")[0].rstrip(":")


def place_problems(read: Reader) -> Iterator[str]:
    """What is set where it has no effect, or only half of one."""
    for path in SHARED:
        key = path.rpartition(".")[2]
        inner, outer = read(path), read(key)
        if inner is not None and outer is not None and inner != outer:
            yield f"{path}={shown(inner)}, but {key}={shown(outer)}; set {key} alone, which everything reads"
    for path, remedy in TAKEN.items():
        if read(path) is not None:
            yield f"{path}={shown(read(path))} can't be set here; {remedy}"


def trainer_problems(read: Reader) -> Iterator[str]:
    averaging = [
        k for k, node in nodes_in(read("callbacks", dict) or {}).items() if "WeightAveraging" in str(node["_target_"])
    ]
    if averaging and "ModelParallel" in (read("trainer.strategy._target_", str) or ""):
        remedy = "use trainer=ddp, or leave the averaging out: callbacks=default"
        yield f"callbacks.{averaging[0]} can't average weights that trainer=fsdp shards over devices; {remedy}"
    for key, names in (
        ("accelerator", {*AcceleratorRegistry.available_accelerators(), "auto", "gpu"}),
        ("strategy", {*StrategyRegistry.available_strategies(), "auto"}),
    ):
        value = read(f"trainer.{key}", str)
        if value is not None and value not in names:
            yield f"trainer.{key}={value}: there is no such {key}{suggest(value, sorted(names))}"
    devices = read("trainer.devices", int)
    if devices is not None and (devices == 0 or devices < -1):
        yield f"trainer.devices={devices} is not a number of devices; use 1 or more, or -1 for all"
    named = read("trainer.devices", str)
    if named is not None and not re.fullmatch(r"auto|-1|\d+(,\s*\d+)*", named):
        yield f"trainer.devices={named} is not a number of devices; use 1 or more, auto, or -1 for all"
    gpus = torch.cuda.device_count() if read("trainer.accelerator", str) in ("auto", "gpu", "cuda") else 0
    if read.elsewhere:
        gpus = 0  # this machine's are not the job's
        if read("trainer.devices") in (-1, "-1", "auto"):
            yield f"trainer.devices={read('trainer.devices')}: a cluster must be asked for a number of devices; name it"
    elif devices == -1 and not gpus:
        yield "trainer.devices=-1 means all GPUs, and there is none to be used; name a number of processes"
    if (nodes := read("trainer.num_nodes", int) or 1) > 1:
        by_others, each = launch.started_by_others(os.environ), launch.place(os.environ)
        if not (by_others or each or read.elsewhere):
            yield (
                f"trainer.num_nodes={nodes}: start the processes of all nodes yourself, with torchrun or srun, "
                "or leave that to -m hydra/launcher=slurm or ray"
            )
        elif read("restarts", int) and not by_others:
            yield f"restarts={read('restarts', int)} starts one machine's processes again, not {nodes}; use restarts=0"
    if devices and gpus and devices > gpus:
        remedy = f"use trainer.devices={gpus}, or trainer.accelerator=cpu"
        yield f"trainer.devices={devices}: this machine has {gpus} GPUs; {remedy}"
    if (clip := read("trainer.gradient_clip_val", float)) is not None and clip < 0:
        yield f"trainer.gradient_clip_val={clip} must be 0 (off) or more"
    for key in ("accumulate_grad_batches", "num_nodes", "log_every_n_steps", "check_val_every_n_epoch"):
        value = read(f"trainer.{key}", int)
        if value is not None and value < 1:
            yield f"trainer.{key}={value} must be at least 1"
    epochs, steps = read("trainer.max_epochs", int), read("trainer.max_steps", int)
    for key, value in (("max_epochs", epochs), ("max_steps", steps)):
        if value is not None and value < 1 and value != -1:
            yield f"trainer.{key}={value} must be at least 1, or -1 for no limit"
    if epochs == steps == -1:
        yield "trainer.max_epochs=-1 and trainer.max_steps=-1 set no end, which the schedule needs; set one of them"
    if read("trainer.use_distributed_sampler", bool):
        yield "trainer.use_distributed_sampler=true would share out twice what vitlab's samplers share out; use false"


def data_problems(read: Reader) -> Iterator[str]:
    fraction, facts = read("data.val_fraction", float), read.facts()
    if fraction is not None and not 0 < fraction < 1:
        yield f"data.val_fraction={fraction} must lie between 0 and 1: the best checkpoint is chosen on that part"
    elif fraction is not None and facts.train_samples and facts.num_classes:
        held_out = math.ceil(facts.train_samples * fraction)
        if held_out < facts.num_classes or facts.train_samples - held_out < facts.num_classes:
            yield (
                f"data.val_fraction={fraction} cuts {facts.train_samples} images into {facts.train_samples - held_out} "
                f"to train on and {held_out} to validate on: fewer than one of each of the {facts.num_classes} classes"
            )
    for key, least in (("num_workers", 0), ("max_train_samples", 1), ("eval_batch_size", 1)):
        value = read(f"data.{key}", int)
        if value is not None and value < least:
            yield f"data.{key}={value} must be at least {least}"
    if (share := read("data.max_skipped", float)) is not None and not 0 <= share < 1:
        yield f"data.max_skipped={share} must be at least 0 and below 1: a share of the images"
    source = (read("data.source._target_", str) or "").rpartition(".")[2]
    if read("data.scaled_decoding", bool) and facts.in_memory:
        yield f"data.scaled_decoding=true is for JPEG files, and {source} lies in memory; leave it out"
    if read("data.on_error", str) == "skip":
        if facts.in_memory:
            yield f"data.on_error=skip is for image folders, and {source} is none; leave it out"
        elif read("data.scan", str) == "none":
            yield "data.on_error=skip decodes every image beforehand, which data.scan=none forbids; leave one out"
    augment = read("data.augment", dict)
    if augment and "_target_" in augment and not any(bad.startswith("data.augment") for bad in read.bad):
        try:
            resolve(str(augment["_target_"]))(**{k: v for k, v in augment.items() if not k.startswith("_")})
        except ValueError as error:
            yield str(error)
    if facts.problems is not None and (settings := read.source_settings()) is not None:
        yield from facts.problems(**settings)


def batch_problems(read: Reader) -> Iterator[str]:
    batch, parts, samples = read("batch_size", int), read.micro_batches(), read.train_samples()
    if batch is None:
        return
    if batch < 1:
        yield f"batch_size={batch} must be at least 1"
    elif batch < parts:
        yield (
            f"batch_size={batch} is for all devices together and leaves nothing for some of {parts} parts "
            f"({read.ranks()} processes x trainer.accumulate_grad_batches); the least is {parts}"
        )
    elif samples is not None and parts > samples:
        yield f"batch_size={batch}: {samples} images can't be shared by {parts} processes and accumulated parts"
    elif samples is not None and batch > samples and read("data.drop_last", bool):
        yield f"batch_size={batch} is more than the {samples} images to train on, and data.drop_last drops them all"


def schedule_problems(read: Reader) -> Iterator[str]:
    for key in ("warmup_steps", "cooldown_steps"):
        steps = read(f"schedule.{key}", int)
        if steps is not None and steps < 0:
            yield f"schedule.{key}={steps} must be 0 or more"
    samples, batch = read.train_samples(), read("batch_size", int)
    epochs, steps = read("trainer.max_epochs", int), read("trainer.max_steps", int)
    total = steps if steps is not None and steps > 0 else math.inf
    if samples and batch and batch > 0 and epochs is not None and epochs > 0:
        per_epoch = samples // batch if read("data.drop_last", bool) else math.ceil(samples / batch)
        accumulate, limit = (
            read("trainer.accumulate_grad_batches", int) or 1,
            read("trainer.limit_train_batches", float),
        )
        if limit is not None:
            batches = per_epoch * accumulate
            per_epoch = math.ceil(min(batches, limit if isinstance(limit, int) else batches * limit) / accumulate)
        total = min(total, epochs * per_epoch)
    ends = read("schedule.warmup_steps", int) or 0, read("schedule.cooldown_steps", int) or 0
    if min(ends) >= 0 and total > 0:
        try:
            check_steps(total, *ends)
        except ValueError as error:
            yield str(error)


def sweep_problems(read: Reader) -> Iterator[str]:
    sweep, retries = read("sweep", str), read("retries", int)
    exists = "action" in read.config  # sweep.py looks at a sweep that is there
    if sweep is not None and not exists and (sweep != identity.safe(sweep) or len(os.fsencode(sweep)) > LONGEST_NAME):
        yield (
            f"sweep={shown(sweep)} must be a plain folder name below runs/sweeps: {LONGEST_NAME} letters, digits, "
            "'.', '_', '-' or '+' at most, a letter or digit first"
        )
    if retries is not None and retries < 0:
        yield f"retries={retries} must be 0 or more"


def root_problems(read: Reader) -> Iterator[str]:
    objective = read("objective", str)
    if objective is not None and objective not in OBJECTIVES:
        yield f"objective={objective} is not measured; use one of {', '.join(OBJECTIVES)}"
    seed = read("seed", int)
    if seed is not None and not 0 <= seed < 2**32:
        yield f"seed={seed} must lie in 0 .. 2**32 - 1"
    name = read("name", str)
    if name is not None:
        parts = name.split("/")
        if not all(part.strip() == part != "" and not part.startswith(".") for part in parts) or "\\" in name:
            yield f"name={name!r} must be a plain folder name below runs/"
        elif not name.isprintable():
            yield f"name={name!r} must be a plain folder name below runs/: it holds what can't be printed"
        elif max(len(os.fsencode(part)) for part in parts) > LONGEST_NAME or len(parts) > 8:
            yield f"name={shown(name)}: a folder name has at most {LONGEST_NAME} bytes, and 8 parts; set a shorter one"
    smoothing = read("classifier.label_smoothing", float)
    if smoothing is not None and not 0 <= smoothing < 1:
        yield f"classifier.label_smoothing={smoothing} is not in [0, 1)"
    if (decay := read("optimizer.weight_decay", float)) is not None and decay < 0:
        yield f"optimizer.weight_decay={shown(decay)} must be 0 or more"
    callbacks = read("callbacks", dict)
    targets = [str(node["_target_"]) for node in nodes_in(callbacks or {}).values()]
    for needed, what in (
        ("checkpoints.BestCheckpoint", "keeps the checkpoint that is tested"),
        ("checkpoints.LastCheckpoint", "keeps the checkpoint that a run goes on from"),
        ("callbacks.Monitor", "logs the training"),
    ):
        if callbacks is not None and f"vitlab.{needed}" not in targets:
            yield f"callbacks has no vitlab.{needed}, which {what}; use callbacks=default and add to it"
    for name_ in ("best", "last"):
        for key, value in (read(f"callbacks.{name_}", dict) or {}).items():
            if ("every_n" in key or key == "keep") and fits(value, float) and value <= 0:
                yield f"callbacks.{name_}.{key}={shown(value)} must be above 0" + " or null" * ("every_n" in key)
    for key in ("limit", "keep"):
        if (value := read(f"callbacks.nonfinite.{key}", int)) is not None and value < 0:
            yield f"callbacks.nonfinite.{key}={value} must be at least 0"
    if (restarts := read("restarts", int)) is not None and restarts < 0:
        yield f"restarts={restarts} must be 0 or more"
    lr = read("optimizer.lr", float)
    if lr is not None and not lr > 0:
        yield f"optimizer.lr={shown(lr)} must be above 0"
    for key, kind in (("logger", "logger"), ("callbacks", "callback")):
        group = read(key, dict)
        for name_, inner in (group or {}).items():
            if inner is not None and not nodes_in(inner):
                yield f"{key}.{name_} is no {kind}: it has no _target_; remove it, or complete it"
    folder = read("data_dir", str)
    if folder and Path(folder).exists() and not os.access(folder, os.R_OK):
        yield f"data_dir={folder} can't be read"
