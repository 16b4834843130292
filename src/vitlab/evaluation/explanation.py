"""The images that are explained, and their maps for a class."""

import logging
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vitlab.config import instantiate
from vitlab.config.printable import one_line
from vitlab.data.decode import UnreadableImage
from vitlab.data.file_list import find_images
from vitlab.data.scan import SplitName
from vitlab.evaluation.attention import Trace, head_attention, rollout, trace
from vitlab.evaluation.checks import split_rows
from vitlab.evaluation.judgement_pictures import dataset_images
from vitlab.evaluation.relevance import Baseline, Curves, compare_with_random, perturbation_curves, relevance
from vitlab.evaluation.trained_model import TrainedModel
from vitlab.runs import folder

log = logging.getLogger(__name__)

ORDERS = 5  # random orders of patches with which a map is compared


def load_inputs(model: TrainedModel, run: str, images: str | list[str] | None, count: int) -> tuple[Tensor, list[str]]:
    """The first of the `images`, rows of a run's splits (`test:17`), or some of its validation split (without one, of
    its test split): the network's inputs B C H W, and their names.
    """
    if images is not None and not split_rows(images):
        inputs, names = list[Tensor](), list[str]()
        for file in find_images(images)[:count]:
            try:
                inputs.append(model.transform(file))
                names.append(one_line(Path(file).name))
            except UnreadableImage as error:
                log.warning("left out: %s", str(error).rsplit("; ", 1)[0])
        if not inputs:
            raise ValueError(f"images={images}: none of them can be read")
        return torch.stack(inputs), names
    path = Path(run)
    data = instantiate.build_object(folder.data_without_scan(folder.read_config(path)["data"], path))
    data.setup()
    usual: SplitName = "val" if data.samples["val"] else "test"
    drawn = torch.randperm(data.samples[usual], generator=torch.Generator().manual_seed(0))[:count].sort().values
    rows = split_rows(images) or [(usual, row) for row in drawn.tolist()]
    for split, row in rows:
        if row >= data.samples[split]:
            raise ValueError(f"images={split}:{row}: the split has {data.samples[split]} images, from 0")
    labels = [one_line(data.source.classes[data.split(split).labels[row]]) for split, row in rows]
    names = [f"{split} {row}, {label}" for (split, row), label in zip(rows, labels, strict=True)]
    return model.prepare()(torch.cat([dataset_images(data, split, [row]) for split, row in rows])), names


def to_images(model: TrainedModel, inputs: Tensor) -> Tensor:
    """The images of a network's inputs, uint8 B C H W."""
    prepare = model.prepare()
    return ((inputs - prepare.shift) / prepare.scale).round().clamp(0, 255).byte()


class Explanation(NamedTuple):
    """Of a batch of images."""

    trace: Trace
    maps: dict[str, Tensor]  # B R S; attention is that of the last block, the mean of its heads
    targets: Tensor  # the class explained, B
    probabilities: Tensor | None  # B classes; None: the network has no head, and there is no relevance


def explain(model: TrainedModel, inputs: Tensor, target: int | None = None) -> Explanation:
    """The maps of images for a class; None: for each image's predicted one."""
    if not model.has_head:
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
        return model.probabilities(model.network(batch))

    return {} if result.probabilities is None else compare_with_random(result.maps, ORDERS, score)
