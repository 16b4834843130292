"""Errors on corrupted images: `corruptions.csv` and `corruptions.png` of an evaluation."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import Dataset

from vitlab.config.schema import Node
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import EvalBatch
from vitlab.data.sampler import BatchPlan
from vitlab.evaluation.corruptions import CORRUPTIONS, to_bytes
from vitlab.evaluation.images import with_channels
from vitlab.evaluation.network_pictures import draw_lines
from vitlab.storage.csv_files import write_csv

# AlexNet's errors in %, each the mean of five severities, of the first 15: the units of CE
ALEXNET = (88.6428, 89.4468, 92.264, 81.988, 82.6268, 78.5948, 79.836, 86.6816, 82.6572, 81.9324, 56.4592, 85.3204,
           64.6056, 71.784, 60.65)  # fmt: skip

log = logging.getLogger(__name__)


class Corrupted(Dataset[EvalBatch]):
    """Images of an evaluation, whose corruption depends on its name, its severity and the image's number alone."""

    def __init__(self, dataset: Any, name: str, severity: int, frost_dir: str | None) -> None:
        self.dataset, self.corruption = dataset, (name, severity, frost_dir)

    def __getitems__(self, plan: BatchPlan) -> EvalBatch:
        batch: EvalBatch = self.dataset.__getitems__(plan)
        for image, index in zip(batch.images, plan.indices, strict=True):
            image[:] = corrupt(image, *self.corruption, index)
        return batch


def corrupt(image: Tensor, name: str, severity: int, frost_dir: str | None, *seed: int) -> Tensor:
    """A corrupted image, uint8 [C, H, W]; a gray one is corrupted in three equal channels."""
    function, values = CORRUPTIONS[name]
    own = values[severity - 1] if isinstance(values[severity - 1], tuple) else (values[severity - 1],)
    rng = np.random.default_rng([[*CORRUPTIONS].index(name), severity, *seed])
    x = with_channels(image, 3).permute(1, 2, 0).numpy() / 255
    changed = function(x, rng, *own, *([frost_dir] if name == "frost" else []))
    return with_channels(torch.from_numpy(to_bytes(changed)).permute(2, 0, 1), len(image))


def measure(
    trainer: Trainer, module: Any, data: DataModule, folder: Path, names: Any, severities: Any, frost_dir: str | None
) -> Node:
    """Run the test loop for each corruption and severity, and write the errors on the first rank. Every rank calls it.

    Returns the mean error of those of the first 15 that are measured; with 1,000 classes and all severities of all 15
    also `mce`, their mean in units of AlexNet's errors.
    """
    names = [name for name in (CORRUPTIONS if names == "all" else names) if name != "frost" or frost_dir]
    first, errors = [*CORRUPTIONS][: len(ALEXNET)], dict[str, list[float]]()
    for name in names:
        errors[name] = []
        for severity in severities:
            data.view = partial(Corrupted, name=name, severity=severity, frost_dir=frost_dir)
            trainer.test(module, data, verbose=False)
            errors[name].append(1 - float(trainer.callback_metrics[f"{module.split}/acc"]))
        log.info("%s: error %s", name, ", ".join(f"{error:.2%}" for error in errors[name]))
    data.view, means = None, {name: float(np.mean(errors[name])) for name in names}
    summary: Node = {
        "mean_error": float(np.mean([means[name] for name in first if name in means] or [*means.values()]))
    }
    is_published = data.num_classes == 1000 and sorted(severities) == [1, 2, 3, 4, 5]
    relative = {
        n: 100 * means[n] / known for n, known in zip(first, ALEXNET, strict=True) if n in means and is_published
    }
    if len(relative) == len(first):
        summary["mce"] = float(np.mean([*relative.values()]))
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        lines = [[name, *errors[name], means[name], relative.get(name)] for name in names]
        write_csv(folder / "corruptions.csv", [["corruption", *map(str, severities), "mean", "CE"], *lines])
        styles = {name: f"C{number % 10}{('o-', 's--')[number // 10]}" for number, name in enumerate(names)}
        panel = {name: (range(1, len(severities) + 1), errors[name], styles[name]) for name in names}
        draw_lines(folder / "corruptions.png", "severity", {"error": panel})
    return summary
