"""Plan a training without its data and devices: steps, rates, FLOPs, memory, hours."""

import json
import logging
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from vitlab.config.instantiate import build_object
from vitlab.config.schema import Node, parameters
from vitlab.data.datamodule import DataModule
from vitlab.data.sampler import count_steps
from vitlab.data.source import loader_facts, loader_settings
from vitlab.diagnostics import plan_report
from vitlab.diagnostics.memory import DTYPES, count_step, measure_step
from vitlab.distributed import environment
from vitlab.models import flops
from vitlab.runs.folder import read_overrides
from vitlab.storage.atomic import atomic_write
from vitlab.training import build
from vitlab.training.classifier import Classifier

log = logging.getLogger(__name__)

POINTS = 1000  # of a curve
MOST_IMAGES = 32  # whose memory is counted; that of more grows linearly
RESERVE = 0.9  # of a device's memory: the rest is for its context, libraries and fragmentation
KINDS = {"stored": False, "recomputed": True}  # activations without and with checkpointing
Memory = dict[str, int]  # bytes by part


def write_plan(
    training: Node,
    folder: Path,
    *,
    device: str,
    mfu: float,
    memory_gb: float | None,
    measure: bool,
    images: int | None,
    classes: int | None,
) -> Node:
    """Plan a training of train.py's settings, and write `plan.json` and `plan.png` to a folder."""
    precision, accelerator = str(training["trainer"]["precision"]), training["trainer"]["accelerator"]
    data, status = planned_data(training, images, classes)
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    here = torch.device("cuda" if on_gpu else "cpu")
    ranks, parts = data.trainer.world_size, data.trainer.world_size * data.trainer.accumulate_grad_batches  # type: ignore[union-attr]
    each, shape = -(-data.batch_size // parts), (data.channels, *data.image_size)
    log.info("counting FLOPs and memory of %d images on each of %d devices", each, ranks)
    make = partial(planned_classifier, training, data)
    network, steps, per_epoch = make("meta").network, make("meta").total_steps(), data.samples["train"]
    names = flops.CHECKPOINTING
    chosen = "recomputed" if any(getattr(m, name, 0) is True for m in network.modules() for name in names) else "stored"
    memory, per_image, common = dict[str, Memory](), dict[str, float](), {"precision": precision}
    on_cpu = device == "here" and not on_gpu
    for kind, checkpointing in KINDS.items():
        sizes = sorted({min(each, MOST_IMAGES), -(-min(each, MOST_IMAGES) // 2)})
        kwargs: Any = {**common, "checkpointing": checkpointing, "on_cpu": on_cpu}
        counts = [count_step(make("meta"), size, shape, **kwargs) for size in sizes]
        *_, (counted, scheduler) = counts
        grown = counted["activations"] - (counts[0][0]["activations"] if len(counts) > 1 else 0)
        per_image[kind] = grown / (sizes[-1] - sizes[0] if len(counts) > 1 else 1)
        counted["activations"] += round(per_image[kind] * (each - sizes[-1]))
        memory[kind] = device_memory(counted, training, ranks)
    image_flops, groups = flops.training_flops(network, shape), scheduler.optimizer.param_groups
    count = count_steps(per_epoch, data.batch_size, data.drop_last)
    seen = round(steps * (count * data.batch_size if data.drop_last else per_epoch) / count)
    curves, peak = rates(scheduler, steps), max(range(len(groups)), key=lambda index: scheduler.base_lrs[index])
    decays = [group.get("weight_decay", 0.0) for group in groups]
    plan: Node = {
        "name": training["name"],
        "overrides": read_overrides(folder),
        "parameters": sum(p.numel() for p in network.parameters()),
        "trained_parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "data": status,
        "images": per_epoch,
        "classes": data.num_classes,
        "batch_size": data.batch_size,
        "devices": ranks,
        "images_per_device": each,
        "precision": precision,
        "flops_per_image": image_flops,
        "flops_per_step": image_flops * data.batch_size,
        "steps_per_epoch": data.steps_per_epoch,
        "steps": steps,
        "images_seen": seen,
        "memory": memory[chosen] | {"total": sum(memory[chosen].values())},
        "memory_by_activations": {kind: sum(memory[kind].values()) for kind in KINDS},
        "learning_rate": curves[peak],
        "weight_decay": [[step, decays[peak]] for step, _ in curves[peak]],
        "groups": [
            {"name": group["name"], "learning_rate": rate, "weight_decay": decay}
            for group, rate, decay in zip(groups, scheduler.base_lrs, decays, strict=True)
        ],
    }
    plan |= {"hours": None, "hours_from": "not measured"}
    if device != "here":
        speed = (flops.named_peak_flops(device, precision) or math.nan) * mfu  # checked before the start
        plan |= {"hours": seen * image_flops / (speed * ranks) / 3600, "hours_from": f"{device}, MFU {mfu:g} assumed"}
    elif measure:
        # on a CPU about a second's images
        most = each if on_gpu else int(0.3 * (flops.peak_flops(here, precision) or 0) / image_flops)
        few = max(1, min(each, most))
        log.info("measuring steps of %d images on this %s; measure=false skips it", few, here.type)
        seconds, measured = measure_step(partial(make, "cpu"), few, shape, device=here, **common)
        counted, _ = count_step(make("meta"), few, shape, checkpointing=KINDS[chosen], on_cpu=on_cpu, **common)
        plan["measurement"] = {"images": few, "seconds": seconds, "memory": measured, "plan": sum(counted.values())}
        plan |= {"hours": seen / few * seconds / ranks / 3600, "hours_from": f"measured on this {here.type}"}
    if memory_gb is None and device == "here" and on_gpu:
        memory_gb = torch.cuda.get_device_properties(here).total_memory / 1e9
    kinds = [k for k in KINDS if k == chosen or "activation_checkpointing" in parameters(training["model"]["_target_"])]
    plan["memory_gb"] = memory_gb
    plan["advice"] = list(advice(plan, memory, per_image, kinds)) if memory_gb else []
    atomic_write(folder / plan_report.FILE, json.dumps(plan, indent=1))
    plan_report.draw_plan(plan, memory, curves, folder / "plan.png")
    return plan


def planned_data(training: Node, images: int | None, classes: int | None) -> tuple[DataModule, str]:
    """The data module with its sizes, attached to what stands for a Trainer, and whether the data is here.

    What the facts of its loader don't say is `images` and `classes`, or listed in a folder that is here.
    """
    node, trainer = training["data"], training["trainer"]
    facts, settings = loader_facts(node["source"]["_target_"]), loader_settings(node["source"])
    problems = list(facts.problems(**settings)) if facts.problems else []
    status = f"not here: {'; '.join(problems)}" if problems else "here"
    if not problems and facts.present and not facts.present(**settings):
        status = f"not in {settings['data_dir']}: downloaded when the training starts"
    data: DataModule = build_object(node)
    published, channels = False, facts.channels or settings.get("channels") or 3
    classes = classes or facts.num_classes or settings.get("num_classes")
    if images is None and facts.train_samples is not None:
        images = facts.train_samples
    elif images is None and facts.count is not None:
        images, published = facts.count(**settings)
    if (images is None or classes is None) and status == "here" and Path(settings.get("data_dir", "")).is_dir():
        log.info("listing the images of %s", settings["data_dir"])
        source = data.load_source()
        images, classes, published = len(source.train), len(source.classes), source.val is not None
    if images is None or classes is None:
        unknown = " and ".join(key for key, value in {"images": images, "classes": classes}.items() if value is None)
        raise ValueError(f"the data is {status}; set {unknown} (of ImageNet-1k images=1281167 classes=1000)")
    left = images if published else images - math.ceil(images * data.val_fraction)
    sizes: Any = SimpleNamespace(classes=range(classes), channels=channels)
    splits: Any = {"train": range(min(left, data.max_train_samples or left))}
    data._source, data._splits = sizes, splits
    ranks = environment.ranks_per_node(trainer["devices"], trainer["accelerator"]) * trainer["num_nodes"]
    ends: Any = {key: trainer.get(key) or -1 for key in ("max_steps", "max_epochs")}
    limit, accumulate = trainer.get("limit_train_batches"), trainer.get("accumulate_grad_batches") or 1
    ends |= {"limit_train_batches": 1.0 if limit is None else limit, "accumulate_grad_batches": accumulate}
    data.trainer = SimpleNamespace(datamodule=data, world_size=ranks, **ends)  # type: ignore[assignment]
    return data, status


def planned_classifier(training: Node, data: DataModule, device: str) -> Classifier:
    """The classifier with its optimizer and schedule, with random weights, on a device."""
    fixed = {"pretrained": False} if "pretrained" in training["model"] else {}
    with torch.device(device):
        module = build.build_classifier(
            training["model"] | fixed,
            data,
            training["classifier"] | {"metrics": {}},
            optimizer=training["optimizer"],
            schedule=training["schedule"],
        )
    kind, _, scope = str(training["trainer"]["precision"]).partition("-")
    module.network.to(DTYPES[kind] if scope == "true" and kind in DTYPES else torch.float32)
    module._trainer = data.trainer  # type: ignore[assignment]
    return module


def device_memory(counted: Memory, training: Node, ranks: int) -> Memory:
    """The memory with what averages, gradient buckets and sharding over devices change."""
    strategy, callbacks = training["trainer"]["strategy"], (training["callbacks"] or {}).values()
    options = strategy if isinstance(strategy, dict) else {}
    if "FullyShardedParallel" in options.get("_target_", ""):
        return {name: size if name == "activations" else -(-size // ranks) for name, size in counted.items()}
    others = {"average": counted["weights"]} if any("Averaging" in str(n["_target_"]) for n in callbacks if n) else {}
    if ranks > 1 and not options.get("gradient_as_bucket_view"):
        others["buckets"] = counted["gradients"]  # of DistributedDataParallel
    return counted | others


def rates(scheduler: LambdaLR, steps: int) -> list[list[list[float]]]:
    """The rate of each group as pairs of step and rate, at some steps from the first to the last."""
    shown = sorted({round(index * (steps - 1) / (POINTS - 1)) for index in range(POINTS)})
    pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    return [[[step, float(rate) * factor(step)] for step in shown] for rate, factor in pairs]


def advice(plan: Node, memory: dict[str, Memory], per_image: dict[str, float], kinds: list[str]) -> Iterator[str]:
    """Whether it fits into the memory, and what would; the configured one of `kinds` of activations comes first."""
    total, each, room = plan["memory"]["total"], plan["images_per_device"], RESERVE * plan["memory_gb"] * 1e9
    verdict = "fits" if total <= room else "does not fit"
    yield f"{verdict}: {total / 1e9:.2f} GB on a device of {plan['memory_gb']:.4g} GB, a tenth of which is kept free"
    if total <= room:
        return
    for kind in kinds:
        fixed = sum(memory[kind].values()) - per_image[kind] * each
        if (most := math.floor((room - fixed) / per_image[kind])) < 1:  # images at a time
            continue
        parts = -(-plan["batch_size"] // (plan["devices"] * most))
        settings = ["model.activation_checkpointing=true"] if sum(memory[kind].values()) < total else []
        settings += [f"trainer.accumulate_grad_batches={parts}"] if parts > 1 else []
        needed = fixed + per_image[kind] * -(-plan["batch_size"] // (plan["devices"] * parts))
        yield f"fits with {' '.join(settings)}: {needed / 1e9:.2f} GB"
    if min(sum(memory[kind].values()) - memory[kind]["activations"] for kind in memory) > room:
        yield "weights, gradients and optimizer alone don't fit: trainer=fsdp shards them over devices"
