"""What the network sees at an optimizer step: the images and targets of training, evaluation's crops, augmentations."""

import logging
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms import v2

from vitlab.config.schema import Node
from vitlab.data import augment_ops
from vitlab.data.auto_augment import LEVELS, magnitude_table
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import EvalBatch, TrainBatch
from vitlab.data.sampler import BatchPlan, count_training_steps
from vitlab.distributed import environment
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
    draw_grid(folder / "training.png", data, images, f"training at step {step}, with targets", titles)
    chosen = plans[0]._replace(indices=[index for plan in plans for index in plan.indices][:count])
    same: EvalBatch = cast(Any, data.loader("train").dataset).__getitems__(chosen)
    titles = [classes[int(label)] for label in same.targets]
    draw_grid(folder / "evaluation.png", data, to_device(data, same).images, "evaluation of the same images", titles)
    if data.channels in (1, 3):
        cells, titles = operations(same.images[:1], levels)
        cells = to_device(data, EvalBatch(cells, torch.zeros(len(cells)))).images
        title = f"each operation at levels {', '.join(map(str, levels))} of RandAugment, with its magnitude"
        rows: Any = {"rows": augment_ops.NAMES, "columns": len(levels)}
        draw_grid(folder / "operations.png", data, cells, title, titles, **rows)
    return sorted(folder.glob("*.png"))


def go_to_step(data: DataModule, node: Node, step: int, folder: Path) -> None:
    """Attach what stands for the Trainer of one process that accumulates the parts of all, before a step.

    Raises `ValueError` for a step after the end of the training.
    """
    quiet = {"devices": 1, "num_nodes": 1, "strategy": "auto", "enable_checkpointing": False}
    trainer = build.build_trainer(node | quiet | {"enable_progress_bar": False}, run_dir=folder)
    ranks = environment.ranks_per_node(node["devices"], node["accelerator"]) * node["num_nodes"]
    accumulate, names = trainer.accumulate_grad_batches, ("accelerator", "precision_plugin", "strategy")
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


def draw_grid(
    file: Path,
    data: DataModule,
    images: Tensor,
    title: str,
    titles: Sequence[str],
    *,
    rows: Sequence[str] = (),
    columns: int = 8,
) -> None:
    """Draw normalized images in rows, with a title above each image and a text before each row."""
    columns = min(columns, len(images))
    count = -(-len(images) // columns)
    figure = Figure(figsize=(1.5 * columns + 1.8 * bool(rows), 1.75 * count + 0.5), layout="constrained")
    figure.suptitle(title)
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    pixels = (images.cpu().float() * std + mean).clamp(0, 1).movedim(1, -1).expand(-1, -1, -1, 3).numpy()
    axes = figure.subplots(count, columns, squeeze=False).flat
    for index, axis in enumerate(axes):
        axis.set(xticks=[], yticks=[], visible=index < len(images))
        if index < len(images):
            axis.imshow(pixels[index])
            axis.set_title(titles[index], fontsize=8)
        if rows and index % columns == 0:
            axis.set_ylabel(rows[index // columns], rotation=0, ha="right", va="center")
    figure.savefig(file, dpi=100)
