"""What the network sees at an optimizer step: the images and targets of training, evaluation's crops, augmentations."""

import logging
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torchvision.transforms import v2

from vitlab.config.schema import Node
from vitlab.data import augment_ops
from vitlab.data.auto_augment import LEVELS, magnitude_table
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import EvalBatch, TrainBatch
from vitlab.data.sampler import BatchPlan, count_training_steps
from vitlab.distributed import environment
from vitlab.evaluation.judgement_pictures import draw_gallery
from vitlab.training import build

log = logging.getLogger(__name__)

STRONGEST = {"SolarizeAdd": 110.0, "Blur": 2.0, "Cutout": 40.0}  # big_vision's and 3-Augment's, which torchvision lacks


def draw_previews(
    data: DataModule, trainer: Node, folder: Path, *, step: int, count: int, levels: Sequence[int]
) -> list[Path]:
    """Draw the pictures into a folder."""
    go_to_step(data, trainer, step, folder)
    plans, classes = step_plans(data), data.source.classes
    log.info("augmenting the %d images of step %d", plans[0].count, step)
    batches = [training_batch(data, plan) for plan in plans]
    images, targets = torch.cat([b.images for b in batches])[:count], torch.cat([b.targets for b in batches])[:count]
    titles = [target_title(target, classes) for target in targets]
    draw(folder / "training.png", data, images, titles)
    chosen = plans[0]._replace(indices=[index for plan in plans for index in plan.indices][:count])
    same: EvalBatch = cast(Any, data.loader("train").dataset).__getitems__(chosen)
    titles = [classes[int(label)] for label in same.targets]
    draw(folder / "evaluation.png", data, to_device(data, same).images, titles)
    if data.channels in (1, 3):
        cells, titles = operations(same.images[:1], levels)
        cells = to_device(data, EvalBatch(cells, torch.zeros(len(cells)))).images
        names = [name for name in augment_ops.NAMES for _ in levels]
        named = [f"{name}\n{magnitude}" for name, magnitude in zip(names, titles, strict=True)]
        draw(folder / "operations.png", data, cells, named, columns=len(levels))
    return sorted(folder.glob("*.png"))


def go_to_step(data: DataModule, node: Node, step: int, folder: Path) -> None:
    """Attach what stands for the Trainer of one process that accumulates the parts of all, before a step.

    Raises `ValueError` for a step after the end of the training.
    """
    quiet = {"devices": 1, "num_nodes": 1, "strategy": "auto", "enable_checkpointing": False}
    trainer = build.build_trainer(node | quiet | {"enable_progress_bar": False}, run_dir=folder)
    ranks = environment.ranks_per_node(node["devices"], node["accelerator"]) * node["num_nodes"]
    names = ("accelerator", "precision_plugin", "strategy", "lightning_module")
    accumulate = trainer.accumulate_grad_batches
    data.trainer = cast(Any, trainer)
    limit = ranks * data.batches_per_epoch
    known = {name: getattr(trainer, name) for name in names} | {"overfit_batches": node.get("overfit_batches", 0)}
    known |= {"accumulate_grad_batches": accumulate * ranks, "limit_train_batches": limit, "global_step": step}
    data.trainer = cast(Any, SimpleNamespace(**known, global_rank=0, world_size=1, num_devices=1))
    if step >= (total := count_training_steps(trainer.max_steps, trainer.max_epochs, data.steps_per_epoch)):
        raise ValueError(f"step={step}: this training has the steps 0 to {total - 1}; choose one of them")


def step_plans(data: DataModule) -> list[BatchPlan]:
    """Which images are the parts of the step."""
    sampler: Any = data.train_dataloader().batch_sampler
    return list(takewhile(lambda plan: plan.step == data.position()[1], sampler))


def training_batch(data: DataModule, plan: BatchPlan) -> TrainBatch:
    """A part of the step as training gets it, on its device."""
    return cast(TrainBatch, to_device(data, cast(Any, data.train_dataloader().dataset).__getitems__(plan)))


def to_device(data: DataModule, batch: Any) -> Any:
    device = cast(Any, data.trainer).strategy.root_device
    batch = batch._replace(images=batch.images.to(device), targets=batch.targets.to(device))
    return data.on_after_batch_transfer(batch, 0)


def operations(image: Tensor, levels: Sequence[int]) -> tuple[Tensor, list[str]]:
    """An image uint8 [1, C, H, W] after each operation at each level of 0 to 30, and the magnitudes as text."""
    table = magnitude_table(v2.RandAugment, LEVELS, image.shape[-2], image.shape[-1])[0].clone()
    for name, strongest in STRONGEST.items():
        table[augment_ops.NAMES.index(name)] = torch.linspace(0, strongest, LEVELS)
    chosen = torch.arange(len(table)).repeat_interleave(len(levels))
    magnitudes = table[:, list(levels)].flatten()
    cells = augment_ops.apply_ops(image.expand(len(chosen), -1, -1, -1), chosen, magnitudes)
    return cells, [f"{value:.3g}" for value in magnitudes.tolist()]


def target_title(target: Tensor, classes: Sequence[str]) -> str:
    """The class, or after mixing the classes with their weights, the largest first."""
    if not target.is_floating_point():
        return classes[int(target)]
    weights = sorted(((weight, label) for label, weight in enumerate(target.tolist()) if weight > 0), reverse=True)
    return "\n".join(f"{classes[label]} {weight:.2f}" for weight, label in weights[:3])


def draw(file: Path, data: DataModule, images: Tensor, titles: Sequence[str], columns: int = 8) -> None:
    """Draw normalized images in rows, with their titles."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    pixels = (255 * (images.cpu().float() * std + mean)).clamp(0, 255).round().byte()
    draw_gallery(file, pixels, titles, columns=min(columns, len(images)))
