"""Predict image files on any number of devices.

Each batch is that of one device, so predictions don't depend on their number.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vitlab.config.printable import one_line
from vitlab.data.decode import UnreadableImage, read_image
from vitlab.evaluation import images as user_images
from vitlab.evaluation.judgement_pictures import draw_gallery, short
from vitlab.evaluation.trained_model import TrainedModel
from vitlab.models import freezing
from vitlab.storage.atomic import atomic_write, write_csv

log = logging.getLogger(__name__)

MOST_SHOWN = 48  # images of the contact sheet
BAR = 10  # characters


class FileBatch(NamedTuple):
    images: Tensor  # uint8 [b, C, H, W]
    numbers: Tensor  # int64 [b], of the files
    readable: Tensor  # bool [b]


class ImageFiles(Dataset[FileBatch]):
    """Image files as a network sees them; black if they can't be read."""

    def __init__(self, paths: Sequence[str], model: TrainedModel) -> None:
        self.paths, self.model = paths, replace(model, network=nn.Identity())  # workers need no network

    def __getitems__(self, numbers: list[int]) -> FileBatch:
        images = torch.zeros(len(numbers), self.model.channels, *self.model.image_size, dtype=torch.uint8)
        readable = torch.ones(len(numbers), dtype=torch.bool)
        for place, number in enumerate(numbers):
            try:
                pixels = user_images.with_channels(read_image(self.paths[number]), self.model.channels)
                images[place] = self.model.crop(pixels)
            except UnreadableImage:
                readable[place] = False
        return FileBatch(images, torch.tensor(numbers), readable)


class Predictor(LightningModule):
    """Collects the most probable classes, and features, of a test loop's images."""

    def __init__(self, model: TrainedModel, top: int, embed: bool, count: int) -> None:
        super().__init__()
        self.network, self.model, self.top, self.embed, self.count = model.network, model, top, embed, count
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.parts: list[tuple[Tensor, ...]] = []  # numbers, readable, probabilities, classes, features

    def test_step(self, batch: FileBatch, batch_idx: int) -> None:
        features: list[Tensor] = []
        head: Any = self.network.get_submodule(freezing.head_names(self.network)[0]) if self.embed else nn.Identity()
        with head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].flatten(1))):
            images = self.model.prepare().to(self.device)(batch.images)  # in float32, also under bf16-true
            outputs = self.network(self.trainer.precision_plugin.convert_input(images))
        scores = self.model.probabilities(outputs) if self.model.has_head else outputs[:, :0]
        best = scores.topk(min(self.top, scores.shape[1]), dim=1)
        self.parts.append(tuple(part.cpu() for part in (batch.numbers, batch.readable, *best, *features)))
        done = min(self.count, self.trainer.world_size * sum(len(numbers) for numbers, *_ in self.parts))
        self.progress = f"{done:,} of {self.count:,} images"


def predict_files(
    paths: Sequence[str],
    model: TrainedModel,
    trainer: Trainer,
    folder: Path,
    *,
    top: int,
    batch_size: int,
    workers: int,
    embed: bool,
) -> dict[str, Any]:
    """Predict files and write the results, on the first rank. Every rank calls it; a summary."""
    predictor, numbers = Predictor(model, top, embed, len(paths)), range(len(paths))
    batches = [[*numbers[start : start + batch_size]] for start in range(0, len(paths), batch_size)]
    own, pin = batches[trainer.global_rank :: trainer.world_size], trainer.strategy.root_device.type == "cuda"
    options: Any = {"collate_fn": nn.Identity(), "num_workers": workers, "pin_memory": pin}
    loader = DataLoader(ImageFiles(paths, model), batch_sampler=own, **options)
    trainer.test(predictor, loader, verbose=False)
    torch.save(predictor.parts, folder / f".predictions.rank{trainer.global_rank}.pt")
    trainer.strategy.barrier("predictions")
    if not trainer.is_global_zero:
        return {}
    parts = list[tuple[Tensor, ...]]()
    for rank in range(trainer.world_size):
        parts += torch.load(file := folder / f".predictions.rank{rank}.pt", weights_only=True)
        file.unlink()
    order, *others = (torch.cat(column) for column in zip(*parts, strict=True))
    readable, probabilities, classes, *features = (column[order.argsort()] for column in others)
    if features:
        features[0][~readable] = torch.nan
        np.save(folder / "embeddings.npy", features[0].float().numpy())
    write_predictions(folder, paths, model, readable.tolist(), probabilities.tolist(), classes.tolist())
    log.info("%d images, %d of them unreadable: %s", len(paths), unreadable := int((~readable).sum()), folder)
    return {"images": len(paths), "unreadable": unreadable}


def write_predictions(
    folder: Path,
    paths: Sequence[str],
    model: TrainedModel,
    readable: list[bool],
    probabilities: list[list[float]],
    classes: list[list[int]],
) -> None:
    """Write predictions.csv, predictions.jsonl and the contact sheet."""
    count, rows, titles = len(classes[0]), list[dict[str, Any]](), dict[str, str]()
    for path, is_readable, values, indices in zip(paths, readable, probabilities, classes, strict=True):
        names = [model.classes[i] if model.classes else str(i) for i in indices]
        known = {"classes": names, "probabilities": [round(value, 6) for value in values]}
        rows.append({"path": path, **(known if is_readable else {"error": read_problem(path)})})
        if is_readable:
            bar = [f"{('█' * round(value * BAR)).ljust(BAR, '░')} {value:.0%}" for value in values[:1]]
            titles[path] = "\n".join([*(short(name, 18) for name in names[:1]), *bar, short(Path(path).name, 18)])
    columns = [f"{word}{i + 1}" for i in range(count) for word in ("class", "probability")]
    lines: list[list[Any]] = [["path", *columns, "error"]]
    for row in rows:
        pairs = zip(*(row.get(key, [None] * count) for key in ("classes", "probabilities")), strict=True)
        lines.append([row["path"], *(cell for pair in pairs for cell in pair), row.get("error")])
    write_csv(folder / "predictions.csv", lines)
    atomic_write(folder / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    if shown := [*titles][:MOST_SHOWN]:
        images = ImageFiles(shown, model).__getitems__([*range(len(shown))]).images
        draw_gallery(folder / "contact_sheet.png", images, [titles[path] for path in shown])


def read_problem(path: str) -> str:
    """Why a file can't be read."""
    try:
        read_image(path)
    except UnreadableImage as error:
        return one_line(str(error).removeprefix(path).rsplit("; ", 1)[0].strip())
    return "it could not be read, and now it can"
