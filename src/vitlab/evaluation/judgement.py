"""The judgement of a split's predictions, from a row for each image: no process holds the logits of all images.

FOLDER/judgement.json   scores with bootstrap intervals, calibration, the most confused pairs
FOLDER/images.csv       label, prediction, probability, loss, Brier score and correctness of each image
FOLDER/classes.csv      precision, recall, F1 and support of each class; empty where they divide by no image
FOLDER/confusion.csv    label, prediction and number of images, of pairs that occur
FOLDER/*.png            `judgement_pictures`
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Callback, Trainer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vitlab.config.schema import Node
from vitlab.data.datamodule import DataModule
from vitlab.evaluation import calibration, judgement_pictures
from vitlab.evaluation.features import gather_rows
from vitlab.storage.atomic import atomic_write
from vitlab.storage.csv_files import write_csv

BOOTSTRAP = {"resamples": 1000, "level": 0.95, "seed": 0, "interval": "percentile"}
Array = NDArray[Any]


class Predictions(NamedTuple):
    """Of each image [N] of a split, in its order; the label is among the first five predictions if `top5`."""

    label: Array
    prediction: Array
    probability: Array
    loss: Array
    brier: Array
    top5: Array

    @property
    def correct(self) -> Array:
        return np.equal(self.label, self.prediction)


def image_rows(logits: Tensor, labels: Tensor, temperature: float | None = None) -> Tensor:
    """The columns of `Predictions` after the label, [B, 5]; with a temperature also those of logits / T, [B, 10]."""
    probabilities, prediction = logits.softmax(dim=1), logits.argmax(dim=1, keepdim=True)
    brier = (probabilities - F.one_hot(labels, logits.shape[1])).square().sum(dim=1, keepdim=True)
    loss = F.cross_entropy(logits, labels, reduction="none")[:, None]
    first = (logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).any(dim=1, keepdim=True)
    rows = torch.cat([prediction, probabilities.gather(1, prediction), loss, brier, first], dim=1)
    return rows if temperature is None else torch.cat([rows, image_rows(logits / temperature, labels)], dim=1)


class RowCollector(Callback):
    """Keeps `compute(logits, labels)` of a test loop's images, on their device."""

    def __init__(self, network: nn.Module, compute: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.compute, self.logits, self.parts = compute, torch.empty(0), list[Tensor]()
        self.hook = network.register_forward_hook(self.keep_logits)

    def keep_logits(self, network: nn.Module, arguments: Any, logits: Tensor) -> None:
        self.logits = logits.to(torch.promote_types(logits.dtype, torch.float32))

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any, **__: Any) -> None:
        self.parts.append(self.compute(self.logits, batch.targets).float())


def collect_rows(
    trainer: Trainer,
    module: Any,
    datamodule: DataModule,
    folder: Path,
    compute: Callable[[Tensor, Tensor], Tensor] = image_rows,
    **options: Any,
) -> Tensor | None:
    """Run the test loop on `datamodule.tested`, and return a row for each image of the split, in its order.

    Every rank calls it. None on ranks after the first, or if the Trainer leaves out images.
    """
    collector, callbacks = RowCollector(module.network, compute), trainer.callbacks  # type: ignore[attr-defined]
    callbacks.append(collector)
    try:
        trainer.test(module, datamodule, verbose=False, **options)
    finally:
        collector.hook.remove()
        callbacks.remove(collector)
    if not isinstance(limit := trainer.limit_test_batches, float) or limit < 1:
        return None
    rows = torch.cat(collector.parts).cpu()
    if trainer.world_size > 1:
        folder.mkdir(parents=True, exist_ok=True)
        gather_rows(trainer, rows, datamodule.split(datamodule.tested), file := folder / "rows.pt")
        if trainer.is_global_zero:
            rows = torch.load(file, weights_only=True)
            file.unlink()
    return rows if trainer.is_global_zero else None


def predictions(labels: Tensor, rows: Tensor) -> Predictions:
    prediction, *others = rows.double().T.numpy()
    return Predictions(labels.numpy(), prediction.astype(np.int64), *others)


def class_scores(label: Array, prediction: Array, classes: int) -> dict[str, Array]:
    """Precision, recall, F1 and support per class; NaN where they divide by no image, and F1 of classes without any."""
    parts = (label[label == prediction], label, prediction)
    hits, support, predicted = (np.bincount(part, minlength=classes).astype(float) for part in parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = np.where(support > 0, 2 * hits / (support + predicted), np.nan)
        return {"precision": hits / predicted, "recall": hits / support, "f1": f1, "support": support.astype(int)}


def score_means(found: Predictions, classes: int, index: Any = slice(None)) -> dict[str, float]:
    """The means over images, and the mean F1 of the classes that have images."""
    f1 = float(np.nanmean(class_scores(found.label[index], found.prediction[index], classes)["f1"]))
    columns = {"acc": found.correct, "acc5": found.top5, "loss": found.loss, "brier": found.brier}
    if classes <= 5:
        del columns["acc5"]
    return {**{name: float(values[index].mean()) for name, values in columns.items()}, "macro_f1": f1}


def bootstrap(statistic: Callable[[Array], dict[str, float]], count: int) -> dict[str, list[float]]:
    """The 95 % percentile interval of each number, over 1,000 resamples of `count` images."""
    generator = np.random.default_rng(BOOTSTRAP["seed"])
    samples = [statistic(generator.integers(count, size=count)) for _ in range(int(BOOTSTRAP["resamples"]))]
    ends = (0.025, 0.975)
    return {name: np.quantile([sample[name] for sample in samples], ends).tolist() for name in samples[0]}


def summary(found: Predictions, classes: int) -> Node:
    bounds = bootstrap(lambda index: score_means(found, classes, index), len(found.label))
    return {
        "scores": score_means(found, classes),
        "intervals": bounds,
        **calibration.summary(found.probability, found.correct),
    }


def confused_pairs(found: Predictions, classes: int) -> list[tuple[int, int, Array]]:
    """Label, prediction and images of each pair of different classes, the most frequent first."""
    errors = np.flatnonzero(~found.correct)
    code = found.label[errors] * classes + found.prediction[errors]
    pairs = [(*divmod(int(pair), classes), errors[code == pair]) for pair in np.unique(code)]
    return sorted(pairs, key=lambda pair: -len(pair[2]))


def without_nan(value: Any) -> Any:
    """The value with None for numbers that aren't finite, which neither JSON nor a table has."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_judgement(
    folder: Path, rows: Tensor, datamodule: DataModule, *, about: Node, raw: Tensor | None = None
) -> Node:
    """Write all files; returns the content of `judgement.json`. `raw`: rows of the weights without averaging."""
    split, names = datamodule.split(datamodule.tested), datamodule.source.classes
    found, classes = predictions(split.labels, rows[:, :5]), len(names)
    pairs = confused_pairs(found, classes)
    judgement: Node = {**about, "digest": split.digest(), "images": len(split), "bootstrap": BOOTSTRAP}
    judgement |= without_nan(summary(found, classes))
    for name, other in (("raw", raw), ("tempered", rows[:, 5:])):
        if other is not None and other.shape[1]:
            judgement[name] = without_nan(summary(predictions(split.labels, other[:, :5]), classes))
    judgement["confused"] = [
        {"label": names[i], "prediction": names[j], "images": len(which), "examples": which[:5].tolist()}
        for i, j, which in pairs[:20]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    columns = [found.probability, found.loss, found.brier, found.correct.astype(int)]
    lines = zip(found.label, found.prediction, *(column.tolist() for column in columns), strict=True)
    paths = split.files or [None] * len(split)
    images = ([k, paths[k], names[i], names[j], *others] for k, (i, j, *others) in enumerate(lines))
    header = ["index", "path", "label", "prediction", "probability", "loss", "brier", "correct"]
    write_csv(folder / "images.csv", [header, *images])
    measured = {name: without_nan(values.tolist()) for name, values in class_scores(*found[:2], classes).items()}
    write_csv(folder / "classes.csv", [["class", *measured], *zip(names, *measured.values(), strict=True)])
    cells = zip(*np.unique(found.label * classes + found.prediction, return_counts=True), strict=True)
    counts = ([names[code // classes], names[code % classes], number] for code, number in cells)
    write_csv(folder / "confusion.csv", [["label", "prediction", "images"], *counts])
    judgement_pictures.draw(folder, found, datamodule, judgement, pairs)
    atomic_write(folder / "judgement.json", json.dumps(judgement, indent=1))
    return judgement
