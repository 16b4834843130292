"""Explain a trained network on images: their maps with scores, and the network's pictures, on a page."""

import logging
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitlab.config import instantiate
from vitlab.config.printable import one_line
from vitlab.config.schema import Node, suggest
from vitlab.evaluation import network_pictures as drawing
from vitlab.evaluation.attention import Trace, head_attention, rollout, trace
from vitlab.evaluation.images import flat_images, with_channels
from vitlab.evaluation.judgement_pictures import dataset_images, draw_gallery
from vitlab.evaluation.relevance import (
    RANDOM,
    Baseline,
    Curves,
    compare_with_random,
    join_curves,
    perturbation_curves,
    relevance,
    score_table,
)
from vitlab.evaluation.trained_model import TrainedModel
from vitlab.runs import folder
from vitlab.runs.html_page import Page

REMOVED = {"blur": "that of the blurred image", "mean": "of the data's mean color"}
SCORES = (
    "Area under the probability of the class while patches are removed in the order of a map (deletion: low is good) or "
    "inserted (insertion: high is good). A removed patch is {removed}. random: the mean of {orders} random orders. "
    "se: standard error of the paired difference."
)
ORDERS = 5  # random orders of patches with which a map is compared

log = logging.getLogger(__name__)


def image_files(pattern: str) -> list[str]:
    """The images of a file, a folder or a pattern."""
    return [*flat_images(sorted(glob(pattern, recursive=True)))]  # noqa: PTH207 (of any folder)


def load_inputs(model: TrainedModel, images: str | None, run: str | None, count: int) -> tuple[Tensor, list[str]]:
    """The first of the `images`, or some of a run's validation split (without one, of its test split): the network's
    inputs B C H W, and their names.
    """
    if images is not None:
        files = image_files(images)[:count]
        return torch.stack([model.transform(file) for file in files]), [one_line(Path(file).name) for file in files]
    path = Path(str(run))
    data = instantiate.build_object(folder.data_without_scan(folder.read_config(path)["data"], path))
    data.setup()
    split = "val" if data.samples["val"] else "test"
    rows = sorted(torch.randperm(data.samples[split], generator=torch.Generator().manual_seed(0))[:count].tolist())
    labels = [one_line(data.source.classes[label]) for label in data.split(split).labels[rows]]
    names = [f"{split} {row}, {label}" for row, label in zip(rows, labels, strict=True)]
    return model.prepare()(dataset_images(data, split, rows)), names


def to_images(model: TrainedModel, inputs: Tensor) -> Tensor:
    """The images of a network's inputs, uint8 B C H W."""
    prepare = model.prepare()
    return ((inputs - prepare.shift) / prepare.scale).round().clamp(0, 255).byte()


def class_index(classes: tuple[str, ...] | None, name: str | int) -> int:
    """The number of a class by its name or number. Raises `ValueError`."""
    if str(name) in (names := classes or ()):
        return names.index(str(name))
    if str(name).isdecimal() and (not names or int(name) < len(names)):
        return int(name)
    raise ValueError(f"target={name} is no class of the network{suggest(str(name), names)}")


class Explanation(NamedTuple):
    """Of a batch of images."""

    trace: Trace
    maps: dict[str, Tensor]  # B R S; attention is that of the last block, the mean of its heads
    targets: Tensor  # the class explained, B
    probabilities: Tensor | None  # B classes; None: the network has no head, and there is no relevance


def explain(model: TrainedModel, inputs: Tensor, target: int | None = None) -> Explanation:
    """The maps of images for a class; None: for each image's predicted one."""
    if getattr(model.network, "num_classes", None) == 0:
        with torch.no_grad():
            traced = trace(model.network, inputs)
        relevant, targets, probabilities = {}, torch.zeros(len(inputs)).long(), None
    else:
        given = None if target is None else torch.full((len(inputs),), target, device=inputs.device)
        values, traced = relevance(model.network, inputs, given)
        probabilities = model.probabilities(traced.logits)
        relevant, targets = {"relevance": values}, probabilities.argmax(dim=1) if given is None else given
    maps = {"attention": head_attention(traced)[:, -1].mean(dim=1), "rollout": rollout(traced), **relevant}
    return Explanation(traced, maps, targets, probabilities)


def score_maps(model: TrainedModel, inputs: Tensor, result: Explanation, baseline: Baseline) -> dict[str, Curves]:
    """The curves of all maps, and of random orders; none without a head."""

    def score(maps: Tensor) -> Curves:
        return perturbation_curves(probabilities, inputs, maps, result.targets, baseline=baseline)

    def probabilities(batch: Tensor) -> Tensor:
        return model.probabilities(model.logits(batch))

    return {} if result.probabilities is None else compare_with_random(result.maps, ORDERS, score)


def draw_image(file: Path, image: Tensor, result: Explanation, i: int, curves: dict[str, Curves]) -> None:
    """Draw image `i` of a batch with its maps and their scores."""
    maps = {name: values[i] for name, values in result.maps.items()}
    areas = {name: [float(area[i]) for area in curve.areas()] for name, curve in curves.items()}
    scores = {name: "\ndeletion {:.2f}, insertion {:.2f}".format(*pair) for name, pair in areas.items()}
    random = scores.get(RANDOM, "").replace("\n", "\nrandom order: ")
    tiles = torch.cat([with_channels(image[None], 3), drawing.overlay(image, torch.stack([*maps.values()]))])
    draw_gallery(file, tiles, [f"image{random}", *(n + scores.get(n, "") for n in maps)], columns=len(tiles), side=224)


def class_shares(model: TrainedModel, result: Explanation, i: int) -> dict[str, tuple[str, float]]:
    """The predicted and the explained class of image `i` of a batch, with their probabilities."""
    if result.probabilities is None:
        return {}
    row, names = result.probabilities[i].cpu(), model.classes or range(result.probabilities.shape[1])
    chosen = {"predicted": int(row.argmax()), "explained": int(result.targets[i])}
    return {key: (one_line(str(names[k])), round(float(row[k]), 4)) for key, k in chosen.items()}


def explain_images(
    model: TrainedModel,
    inputs: Tensor,
    names: list[str],
    page: Page,
    out: Path,
    *,
    target: int | None,
    other: TrainedModel | None,
    count: int,
    batch_size: int,
    baseline: Baseline,
) -> tuple[list[dict[str, Any]], Node]:
    """Draw pictures of the first `count` images, and of the network, to a folder and a page.

    `target`: the class to explain, None: the predicted one; `other`: another network, for CKA. Returns the rows of
    scores, none without a head, and other numbers.
    """
    images = to_images(model, inputs)
    batches, curves, kernels, tokens, predictions = list[Any](), list[Any](), list[Any](), list[Tensor](), list[Node]()
    page.add_section("Images")
    for start in range(0, len(inputs), batch_size):
        batch, pixels = inputs[start : start + batch_size].to(model.device), images[start : start + batch_size]
        result = explain(model, batch, target)
        batches.append(drawing.batch_statistics(result.trace))
        curves.append(score_maps(model, batch, result, baseline))
        tokens += result.trace.tokens[-1][: max(0, count - start), result.trace.prefix :]
        heads = head_attention(result.trace)
        if other is not None:
            with torch.no_grad():
                compared = trace(other.network, other.prepare()(with_channels(pixels, other.channels)).to(other.device))
            kernels.append(drawing.batch_statistics(compared).kernels)
        for i, number in enumerate(range(start, start + len(batch))):
            shares = class_shares(model, result, i)
            predictions.append({"image": names[number], **shares})
            if number < count:
                files = [out / f"{kind}_{number}.png" for kind in ("maps", "heads")]
                draw_image(files[0], pixels[i], result, i, curves[-1])
                drawing.draw_heads(files[1], pixels[i], heads[i])
                text = "".join(f"; {key}: {name}, {share:.1%}" for key, (name, share) in shares.items())
                page.add_picture(files[0], names[number] + text)
                page.add_picture(files[1], f"{names[number]}: attention by block and head")
        log.info("explained %d of %d images", start + len(batch), len(inputs))
    rows = score_table(joined := join_curves(curves))
    if rows:
        page.add_section("Scores")
        page.add_text(SCORES.format(removed=REMOVED[baseline], orders=ORDERS))
        page.add_table(list(rows[0]), [list(row.values()) for row in rows])
        parts = ("deletion", "insertion")
        panels = {
            p: {n: (c.shares.cpu(), getattr(c, p).mean(dim=0).cpu(), "-") for n, c in joined.items()} for p in parts
        }
        drawing.draw_lines(out / "curves.png", "share of the patches", panels)
        page.add_picture(out / "curves.png", "Mean probability of the class while patches are removed and inserted")
    few = with_channels(images[:count], 3)
    captions, numbers = drawing.draw_network(out, model.network, result.trace, batches, few, torch.stack(tokens))
    own = [statistics.kernels for statistics in batches]
    if own[0].shape[1] > 3:
        compared_names = ("the network", "the network" if other is None else "the other")
        drawing.draw_cka(out / "cka.png", drawing.cka(own, kernels or own), compared_names)
        captions["cka"] = "Linear CKA between the tokens after two blocks, an image as one example"
    page.add_section("Network")
    for name, caption in captions.items():
        page.add_picture(out / f"{name}.png", caption)
    return rows, {"images": predictions, "blocks": numbers}
