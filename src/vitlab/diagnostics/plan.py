"""Plan a training without its data and devices: steps, rates, FLOPs, memory, hours."""

import glob
import json
import logging
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.benchmark import Timer

from vitlab.config.instantiate import build_object
from vitlab.config.schema import Node, parameters
from vitlab.data.datamodule import DataModule
from vitlab.data.sampler import count_steps
from vitlab.data.source import images_to_train_on, loader_facts, loader_settings
from vitlab.diagnostics import plan_report
from vitlab.diagnostics.memory import DTYPES, count_step, train_step, zero_batch
from vitlab.distributed import environment
from vitlab.models import flops
from vitlab.runs.folder import read_overrides
from vitlab.storage.atomic import atomic_write
from vitlab.training import build
from vitlab.training.classifier import Classifier
from vitlab.training.distillation import open_teacher
from vitlab.training.optimizer import group_table

log = logging.getLogger(__name__)

POINTS = 1000  # of a curve
MOST_IMAGES = 32  # whose memory is counted; that of more grows linearly
RESERVE = 0.9  # of a device's memory: the rest is for its context, libraries and fragmentation
KINDS = {"stored": False, "recomputed": True}  # activations without and with checkpointing


class Need(NamedTuple):
    """Bytes on a device by part; the activations of an image, and those of a batch without any."""

    parts: dict[str, int]
    per_image: float
    constant: float

    def of(self, images: int) -> dict[str, int]:
        return self.parts | {"activations": round(self.constant + self.per_image * images)}

    def total(self, images: int) -> int:
        return sum(self.of(images).values())


Counted = tuple[nn.Module, LambdaLR, dict[str, Need]]  # groups have their peak rates; memory is by `KINDS`


def write_plan(
    training: Node,
    data: DataModule,
    status: str,
    folder: Path,
    *,
    device: str,
    mfu: float,
    memory_gb: float | None,
    measure: bool,
) -> Node:
    """Plan a training with the settings of train.py on `planned_data`; write `plan.json` and `plan.png`."""
    on_gpu = training["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available()
    here, ranks = torch.device("cuda" if on_gpu else "cpu"), cast(Any, data.trainer).world_size
    each = -(-data.batch_size // (ranks * cast(Any, data.trainer).accumulate_grad_batches))
    log.info("counting FLOPs and memory of %d images on each of %d devices", each, ranks)
    network, scheduler, needs = counted_step(training, data, each, on_cpu=device == "here" and not on_gpu)
    for line in group_table(network, scheduler.optimizer):
        log.info(line)
    module = planned_classifier(training, data)
    network, steps, samples = module.network, module.total_steps(), data.samples["train"]
    is_on = any(getattr(part, name, False) is True for part in network.modules() for name in flops.CHECKPOINTING)
    chosen = "recomputed" if is_on else "stored"
    counted = {size: flops.training_flops(network, (data.channels, *size)) for size in data.train_sizes}
    epochs, largest = range(-(-steps // data.steps_per_epoch)), counted[max(counted)]
    image_flops = sum(counted[data.train_size(epoch)] for epoch in epochs) // len(epochs)
    work, teacher = image_flops, Node()
    if source := training["classifier"]["teacher"]:
        opened = open_teacher(source)
        other = opened.build(in_chans=data.channels, pretrained=False)
        forward = flops.count_flops(other, (data.channels, *opened.image_size), backward=False)
        teacher = {"teacher_parameters": sum(p.numel() for p in other.parameters()), "teacher_flops_per_image": forward}
        work += forward
        for need in needs.values():
            need.parts["teacher"] = 4 * teacher["teacher_parameters"]
    count = count_steps(samples, data.batch_size, data.drop_last)
    seen = round(steps * (count * data.batch_size if data.drop_last else samples) / count)
    peak = flops.peak_flops(here if device == "here" else device, str(training["trainer"]["precision"]))
    hours, source = None, "not measured"
    if device != "here" and peak:
        hours, source = seen * work / (peak * mfu * ranks) / 3600, f"{device}, MFU {mfu:g} assumed"
    elif measure:
        few = each if on_gpu or not peak else max(1, min(each, int(0.3 * peak / image_flops)))
        seconds = measured_seconds(training, data, few, here) * work / largest
        hours, source = seen * seconds / ranks / 3600, f"measured on this {here.type}"
    if memory_gb is None and device == "here" and on_gpu:
        memory_gb = torch.cuda.get_device_properties(here).total_memory / 1e9
    groups = [
        {"name": group["name"], "learning_rate": group["lr"], "weight_decay": group.get("weight_decay", 0.0)}
        for group in scheduler.optimizer.param_groups
    ]
    curves, main = rates(scheduler, steps), max(range(len(groups)), key=lambda n: groups[n]["learning_rate"])
    plan: Node = {
        "name": training["name"],
        "overrides": read_overrides(folder),
        "data": status,
        "images": samples,
        "classes": data.num_classes,
        "parameters": sum(p.numel() for p in network.parameters()),
        "trained_parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "flops_per_image": image_flops,
        **teacher,
        "flops_per_step": image_flops * data.batch_size,
        "batch_size": data.batch_size,
        "devices": ranks,
        "images_per_device": each,
        "steps_per_epoch": data.steps_per_epoch,
        "steps": steps,
        "images_seen": seen,
        "hours": hours,
        "hours_from": source,
        "memory_gb": memory_gb,
        "memory": needs[chosen].of(each) | {"total": needs[chosen].total(each)},
        "memory_by_activations": {kind: need.total(each) for kind, need in needs.items()},
        "groups": groups,
        "learning_rate": curves[main],
    }
    settings = {chosen: ""}
    if chosen == "stored" and "activation_checkpointing" in parameters(training["model"]["_target_"]):
        settings["recomputed"] = "model.activation_checkpointing=true "
    plan["advice"] = list(advice(plan, needs, settings)) if memory_gb else []
    atomic_write(folder / plan_report.FILE, json.dumps(plan, indent=1))
    plan_report.draw_plan(plan, curves, folder / "plan.png")
    return plan


def counted_step(training: Node, data: DataModule, images: int, *, on_cpu: bool) -> Counted:
    """A step of `images` on each device; the memory of more than `MOST_IMAGES` is extrapolated."""
    needs, few, shape = dict[str, Need](), min(max(2, images), MOST_IMAGES), (data.channels, *max(data.train_sizes))
    options: Any = {"precision": str(training["trainer"]["precision"]), "on_cpu": on_cpu}
    for kind, checkpointing in KINDS.items():
        half, module = planned_classifier(training, data), planned_classifier(training, data)
        before, _ = count_step(half, -(-few // 2), shape, checkpointing=checkpointing, **options)
        counted, scheduler = count_step(module, few, shape, checkpointing=checkpointing, **options)
        per_image = max(1.0, (counted["activations"] - before["activations"]) / (few // 2))
        parts = device_memory(counted, training, cast(Any, data.trainer).world_size)
        needs[kind] = Need(parts, per_image, counted["activations"] - per_image * few)
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["lr"] = rate
    return module.network, scheduler, needs


def measured_seconds(training: Node, data: DataModule, images: int, here: torch.device) -> float:
    """The seconds of an image, in three seconds of steps of `images` here, without loading and augmentation."""
    log.info("measuring steps of %d images on this %s; measure=false skips it", images, here.type)
    module = planned_classifier(training, data, "cpu").to(here)
    batch, optimizer = zero_batch(module, images, (data.channels, *max(data.train_sizes))), module.build_optimizer()
    step = partial(train_step, module, optimizer, *batch, str(training["trainer"]["precision"]))
    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=3).median / images


def planned_data(training: Node, images: int | None, classes: int | None) -> tuple[DataModule, str]:
    """The data module with its sizes, attached to what stands for a Trainer, and whether the data is here.

    What the facts of its loader don't say is `images` and `classes`, or listed in a folder that is here.
    """
    node, trainer = training["data"], training["trainer"]
    facts, settings = loader_facts(node["source"]["_target_"]), loader_settings(node["source"])
    problems = list(facts.problems(**settings)) if facts.problems else []
    status = f"not here: {'; '.join(problems)}" if problems else "here"
    patterns = [str(Path(settings["data_dir"]).expanduser() / name) for name in facts.files]
    if patterns and not any(map(glob.glob, patterns)):
        status = f"not in {settings['data_dir']}: downloaded when the training starts"
    data: DataModule = build_object(node)
    counted, published = facts.size(settings)
    images, published = (counted, published) if images is None else (images, False)
    classes = classes or facts.num_classes or settings.get("num_classes")
    if (images is None or classes is None) and status == "here" and Path(settings.get("data_dir", "")).is_dir():
        log.info("listing the images of %s", settings["data_dir"])
        source = data.load_source()
        images, classes, published = len(source.train), len(source.classes), source.val is not None
    if images is None or classes is None:
        unknown = " and ".join(key for key, value in {"images": images, "classes": classes}.items() if value is None)
        raise ValueError(f"the data is {status}; set {unknown} (of ImageNet-1k images=1281167 classes=1000)")
    channels = facts.channels or settings.get("channels") or 3
    sizes: Any = SimpleNamespace(classes=range(classes), channels=channels)
    splits: Any = {"train": range(images_to_train_on(images, published, data.val_fraction, data.max_train_samples))}
    data._source, data._splits = sizes, splits
    ranks = environment.ranks_per_node(trainer["devices"], trainer["accelerator"]) * trainer["num_nodes"]
    ends: Any = {key: trainer.get(key) or -1 for key in ("max_steps", "max_epochs")}
    limit, accumulate = trainer.get("limit_train_batches"), trainer.get("accumulate_grad_batches") or 1
    ends |= {"limit_train_batches": 1.0 if limit is None else limit, "accumulate_grad_batches": accumulate}
    data.trainer = SimpleNamespace(datamodule=data, world_size=ranks, **ends)  # type: ignore[assignment]
    return data, status


def planned_classifier(training: Node, data: DataModule, device: str = "meta") -> Classifier:
    """The classifier with its optimizer and schedule, with random weights, on a device."""
    fixed = {"pretrained": False} if "pretrained" in training["model"] else {}
    model, options = training["model"] | fixed, training["classifier"] | {"metrics": {}}
    parts = {name: training[name] for name in ("optimizer", "schedule")}
    with torch.device(device):
        module = build.build_classifier(model, data, options, **parts)
    kind, _, scope = str(training["trainer"]["precision"]).partition("-")
    module.network.to(DTYPES[kind] if scope == "true" and kind in DTYPES else torch.float32)
    module._trainer = data.trainer
    return module


def device_memory(counted: dict[str, int], training: Node, ranks: int) -> dict[str, int]:
    """The memory with what averages, gradient buckets and sharding over devices change."""
    strategy, callbacks = training["trainer"]["strategy"], (training["callbacks"] or {}).values()
    options = strategy if isinstance(strategy, dict) else {}
    factor = 2 if str(training["trainer"]["precision"]) in ("bf16-true", "16-true") else 1  # it is kept in float32
    averaged = any("Averaging" in str(n["_target_"]) for n in callbacks if n)
    others = {"average": factor * counted["weights"]} if averaged else {}
    if "FullyShardedParallel" in options.get("_target_", ""):
        return {name: -(-size // ranks) for name, size in (counted | others).items()}
    if ranks > 1 and not options.get("gradient_as_bucket_view"):
        others["buckets"] = counted["gradients"]  # of DistributedDataParallel
    return counted | others


def rates(scheduler: LambdaLR, steps: int) -> list[list[list[float]]]:
    """The rate of each group as pairs of step and rate, at some steps from the first to the last."""
    shown = sorted({round(index * (steps - 1) / (POINTS - 1)) for index in range(POINTS)})
    pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    return [[[step, float(rate) * factor(step)] for step in shown] for rate, factor in pairs]


def advice(plan: Node, needs: dict[str, Need], settings: dict[str, str]) -> Iterator[str]:
    """Whether it fits into the memory, and what would, by the settings of each kind of activations."""
    total, room, devices = plan["memory"]["total"], RESERVE * plan["memory_gb"] * 1e9, plan["devices"]
    verdict = "fits" if total <= room else "does not fit"
    yield f"{verdict}: {total / 1e9:.2f} GB on a device of {plan['memory_gb']:.4g} GB, a tenth of which is kept free"
    for kind, setting in settings.items() if total > room else ():
        most = math.floor((room - needs[kind].total(0)) / needs[kind].per_image)  # images at a time
        if most > 0:
            parts = -(-plan["batch_size"] // (devices * most))
            setting += f"trainer.accumulate_grad_batches={parts}" if parts > 1 else ""
            needed = needs[kind].total(-(-plan["batch_size"] // (devices * parts)))
            yield f"fits with {setting.strip()}: {needed / 1e9:.2f} GB"
    if min(need.total(0) for need in needs.values()) > room:
        yield "weights, gradients and optimizer alone don't fit: trainer=fsdp shards them over devices"
