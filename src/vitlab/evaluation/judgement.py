"""The judgement of a split's predictions, from a row for each image: no process holds the logits of all images."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vitlab.config.schema import Node
from vitlab.data.datamodule import DataModule
from vitlab.evaluation import calibration, judgement_pictures
from vitlab.evaluation.features import gather_rows
from vitlab.storage.atomic import atomic_write, write_csv

COLUMNS = ("prediction", "probability", "loss", "brier", "top5", "label")  # of `image_rows`
BOOTSTRAP = "95 % percentile bootstrap, 1,000 resamples of the images, seed 0"
Array = NDArray[Any]
Images = dict[str, Array]  # the columns, `label` and `correct`, of the images of a split, in its order
Rows = Callable[[Tensor, Tensor], Tensor]  # logits [B, classes], labels [B] -> [B, D]


def image_rows(logits: Tensor, labels: Tensor, temperature: float | None = None) -> Tensor:
    """`COLUMNS` of images, [B, 6]; with a temperature T followed by those of logits / T, [B, 12]."""
    probabilities, prediction = logits.softmax(dim=1), logits.argmax(dim=1, keepdim=True)
    own = probabilities.gather(1, labels[:, None])
    brier = (probabilities.square().sum(dim=1, keepdim=True) - 2 * own + 1).clamp(min=0)
    loss = F.cross_entropy(logits, labels, reduction="none")[:, None]
    first = (logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).any(dim=1, keepdim=True)
    rows = torch.cat([prediction, probabilities.gather(1, prediction), loss, brier, first, labels[:, None]], dim=1)
    return rows if temperature is None else torch.cat([rows, image_rows(logits / temperature, labels)], dim=1)


class RowCollector(Callback):
    """Keeps the rows of a test loop's images, on their device."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.parts = rows, list[Tensor]()

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        self.parts.append(self.rows(outputs["logits"], outputs["labels"]).float())


def collect_rows(
    trainer: Trainer, module: Any, datamodule: DataModule, folder: Path, rows: Rows = image_rows, **options: Any
) -> Tensor | None:
    """Run the test loop on `datamodule.tested`, and return the rows of the split's images, in its order.

    Every rank calls it. None on ranks after the first, or if the Trainer leaves out images.
    """
    collector, callbacks = RowCollector(rows), trainer.callbacks  # type: ignore[attr-defined]
    callbacks.append(collector)
    trainer.test(module, datamodule, verbose=False, **options)
    callbacks.remove(collector)
    if not isinstance(limit := trainer.limit_test_batches, float) or limit < 1:
        return None
    share = torch.cat(collector.parts).cpu()
    if trainer.world_size > 1:
        folder.mkdir(parents=True, exist_ok=True)
        gather_rows(trainer, share, datamodule.split(datamodule.tested), file := folder / "rows.pt")
        if trainer.is_global_zero:
            share = torch.load(file, weights_only=True)
            file.unlink()
    return share if trainer.is_global_zero else None


def image_columns(rows: Tensor) -> Images:
    images: Images = dict(zip(COLUMNS, rows.double().T.numpy(), strict=True))
    images |= {name: images[name].astype(np.int64) for name in ("label", "prediction")}
    return images | {"correct": images["label"] == images["prediction"]}


def class_scores(label: Array, prediction: Array, classes: int) -> dict[str, Array]:
    """Precision, recall, F1 and support per class; NaN where they divide by no image, and F1 of classes without any."""
    parts = (label[label == prediction], label, prediction)
    hits, support, predicted = (np.bincount(part, minlength=classes) for part in parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = np.where(support > 0, 2 * hits / (support + predicted), np.nan)
        return {"precision": hits / predicted, "recall": hits / support, "f1": f1, "support": support}


def score_means(images: Images, classes: int, index: Any = slice(None)) -> dict[str, float]:
    """The means over images, and the mean F1 of the classes that have images."""
    names = {"acc": "correct", "acc5": "top5", "loss": "loss", "brier": "brier"}
    means = {name: float(images[key][index].mean()) for name, key in names.items() if name != "acc5" or classes > 5}
    f1 = np.nanmean(class_scores(images["label"][index], images["prediction"][index], classes)["f1"])
    return means | {"macro_f1": float(f1)}


def bootstrap(statistic: Callable[[Array], dict[str, float]], count: int) -> dict[str, list[float]]:
    """The 95 % percentile interval of each number, over 1,000 resamples of `count` images."""
    generator = np.random.default_rng(0)
    samples = [statistic(generator.integers(count, size=count)) for _ in range(1000)]
    return {name: np.quantile([sample[name] for sample in samples], (0.025, 0.975)).tolist() for name in samples[0]}


def scores_with_intervals(images: Images, classes: int) -> dict[str, list[float]]:
    """Each score with the ends of its interval; ECE has none, as resamples are less calibrated."""
    intervals = bootstrap(lambda index: score_means(images, classes, index), len(images["label"]))
    scores = {name: [value, *intervals[name]] for name, value in score_means(images, classes).items()}
    for name, adaptive in (("ece", False), ("adaptive_ece", True)):
        bins = calibration.bin_table(images["probability"], images["correct"], adaptive=adaptive)
        scores[name] = [calibration.calibration_error(bins)]
    return scores


def class_pairs(images: Images, names: Sequence[str]) -> list[tuple[str, str, Array]]:
    """Label, prediction and indices of each pair that occurs, the most frequent first."""
    code = images["label"] * len(names) + images["prediction"]
    pairs, starts = np.unique(code[order := np.argsort(code, kind="stable")], return_index=True)
    parts = zip(pairs.tolist(), np.split(order, starts[1:]), strict=True)
    groups = [(names[pair // len(names)], names[pair % len(names)], index) for pair, index in parts]
    return sorted(groups, key=lambda group: -len(group[2]))


def write_judgement(
    folder: Path, rows: Tensor, datamodule: DataModule, *, about: Node, raw: Tensor | None = None
) -> Node:
    """Write all files; returns the content of `judgement.json`. `raw`: rows of the weights without averaging."""
    split, names = datamodule.split(datamodule.tested), datamodule.source.classes
    parts = {"predictions": rows[:, : len(COLUMNS)], "raw": raw, "tempered": rows[:, len(COLUMNS) :]}
    variants = {k: image_columns(part) for k, part in parts.items() if part is not None and part.numel()}
    images = variants["predictions"]
    pairs = [[i, j, len(index), index[:5].tolist()] for i, j, index in class_pairs(images, names)]
    confused = [pair for pair in pairs if pair[0] != pair[1]]
    classes = class_scores(images["label"], images["prediction"], len(names))
    lines = zip(names, *(values.tolist() for values in classes.values()), strict=True)
    judgement: Node = {**about, "digest": split.digest(), "images": len(split), "bootstrap": BOOTSTRAP}
    judgement |= {"scores": {name: scores_with_intervals(own, len(names)) for name, own in variants.items()}}
    bins = {name: calibration.bin_table(own["probability"], own["correct"]) for name, own in variants.items()}
    judgement |= {"bins": bins, "confused": confused[:20], "classes": [["class", *classes], *lines]}
    if "run" in about and "test_dir" not in about and not images["correct"].all():
        order = np.argsort(-images["probability"] * ~images["correct"], kind="stable")[:3]
        named = ",".join(f"{about['split']}:{row}" for row in order if not images["correct"][row])
        judgement["why"] = f'python src/explain.py run={about["run"]} "images=[{named}]"'
    judgement = json.loads(json.dumps(judgement), parse_constant=lambda constant: None)  # NaN
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"index": range(len(split)), "path": split.files or [None] * len(split)}
    columns |= {key: [names[number] for number in images[key]] for key in ("label", "prediction")}
    columns |= {key: images[key].tolist() for key in ("probability", "loss", "brier", "correct")}
    write_csv(folder / "images.csv", [[*columns], *zip(*columns.values(), strict=True)])
    write_csv(folder / "classes.csv", judgement["classes"])
    write_csv(folder / "confusion.csv", [["label", "prediction", "images"], *(pair[:3] for pair in pairs)])
    judgement_pictures.draw(folder, images, datamodule, judgement)
    atomic_write(folder / "judgement.json", json.dumps(judgement, indent=1))
    return judgement
