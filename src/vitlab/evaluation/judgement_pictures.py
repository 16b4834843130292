"""Pictures of a judgement, in its folder."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitlab.config.printable import one_line
from vitlab.config.schema import Node
from vitlab.data.datamodule import DataModule
from vitlab.data.sampler import BatchPlan
from vitlab.data.scan import SplitName

CAPTIONS = {
    "confusion": "Confusion: images by label (rows) and prediction (columns); the color is the share of the row",
    "pairs": "The most confused pairs, label → prediction, with its probability and the image's index",
    "errors": "The most confident errors, label → prediction",
    "hits": "The least confident hits",
    "reliability": "Reliability: accuracy of predictions by their probability, in 15 bins of equal width, with images",
    "corruptions": "Errors on images that are corrupted as in ImageNet-C",
}
SIDE, COLUMNS, MOST = 112, 6, 24  # of a gallery: an image's width in pixels, images in a row and in all
MOST_NAMES, MOST_CLASSES = 40, 2000  # of a confusion matrix


def draw(folder: Path, found: dict[str, Any], datamodule: DataModule, judgement: Node) -> None:
    """Draw all pictures of a judgement, whose columns of images are `found`."""
    names, order = datamodule.source.classes, np.argsort(-found["probability"], kind="stable")
    correct, examples = found["correct"][order], [index for *_, some in judgement["confused"] for index in some[:4]]
    galleries = {"pairs": examples, "errors": order[~correct], "hits": order[correct][::-1]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        if len(names) <= MOST_CLASSES:
            draw_confusion(folder / "confusion.png", found["label"], found["prediction"], names)
        draw_reliability(folder / "reliability.png", judgement)
        for name, index in galleries.items():
            (folder / f"{name}.png").unlink(missing_ok=True)
            titles = []
            for i in index[:MOST]:
                pair = "\n→ ".join(dict.fromkeys(short(names[found[key][i]]) for key in ("label", "prediction")))
                titles.append(f"{pair}\n{found['probability'][i]:.1%}   #{i}")
            if titles:
                images = dataset_images(datamodule, datamodule.tested, index[:MOST])
                draw_gallery(folder / f"{name}.png", images, titles)


def dataset_images(datamodule: DataModule, split: SplitName, index: Iterable[int]) -> Tensor:
    """Images of a split as evaluation gets them, before they are normalized: uint8 [n, C, H, W]."""
    dataset: Any = datamodule.loader(split).dataset
    return cast(Tensor, dataset.__getitems__(BatchPlan(0, 0, [int(i) for i in index], 0)).images)


def short(name: str, most: int = 18) -> str:
    name = one_line(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def draw_gallery(
    file: Path, images: Tensor, titles: Sequence[str], *, columns: int = COLUMNS, side: int = SIDE
) -> None:
    """Draw uint8 images [n, C, H, W] with their titles below."""
    height, gap = max(1, round(side * images.shape[2] / images.shape[3])), side // 8
    rgb = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    scaled = F.interpolate(rgb.float(), (height, side), mode="area" if images.shape[3] > side else "nearest")
    tiles = scaled.byte().permute(0, 2, 3, 1).numpy()
    text = 15 * (1 + max(title.count("\n") for title in titles)) if any(titles) else 0
    down, right, rows = height + gap + text, side + gap, -(-len(tiles) // columns)
    width = right * columns
    figure, axis = new_figure(width / 100, rows * down / 100)
    axis.set(position=(0, 0, 1, 1), xlim=(0, width), ylim=(rows * down, 0))
    axis.set_axis_off()
    for number, (tile, title) in enumerate(zip(tiles, titles, strict=True)):
        top, left = number // columns * down + 4, number % columns * right + gap // 2
        axis.imshow(tile, extent=(left, left + side, top + height, top), aspect="auto", interpolation="nearest")
        axis.text(left, top + height + 4, title, va="top", fontsize=7, linespacing=1.3, parse_math=False)
    figure.savefig(file, dpi=150)


def draw_confusion(file: Path, label: Any, prediction: Any, names: Sequence[str]) -> None:
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (label, prediction), 1)
    shares, few = counts / np.maximum(1, counts.sum(axis=1, keepdims=True)), len(names) <= MOST_NAMES
    side = 5.2 + 0.3 * max(0, len(names) - 10) if few else 8
    figure, axis = new_figure(side + 0.8, side)
    pooled = F.adaptive_max_pool2d(torch.from_numpy(shares)[None], min(len(names), 250))[0].numpy()
    ends = (-0.5, len(names) - 0.5)
    picture = axis.imshow(pooled, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", extent=ends + ends[::-1])
    figure.colorbar(picture, shrink=0.8)
    axis.set(xlabel="prediction", ylabel="label")
    if few:
        texts, places = [short(name) for name in names], range(len(names))
        axis.set_xticks(places, texts, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
        axis.set_yticks(places, texts, parse_math=False)
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=color)
    figure.savefig(file, dpi=110)


def draw_reliability(file: Path, judgement: Node) -> None:
    figure, axis = new_figure(5.4, 4.6)
    axis.plot([0, 1], [0, 1], "--", color="gray", linewidth=1, label="calibrated")
    for (name, bins), style in zip(judgement["bins"].items(), ("o-", "s:", "^-"), strict=False):
        if bins:
            _, means, accuracies = zip(*bins, strict=True)
            ece = judgement["scores"][name]["ece"][0]
            axis.plot(means, accuracies, style, markersize=4, label=f"{name}: ECE {ece:.4f}")
            for point in bins if name == "predictions" else ():
                axis.annotate(f"{point[0]}", point[1:], (5, -9), textcoords="offset points", fontsize=7)
    axis.set(xlabel="probability of the prediction", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axis.legend(loc="lower right", fontsize=8)
    axis.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
