"""The images and the class that are explained, and their maps."""

from collections.abc import Callable
from glob import glob
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vitlab.config import instantiate
from vitlab.config.printable import one_line
from vitlab.config.schema import suggest
from vitlab.evaluation.attention import Trace, head_attention, rollout
from vitlab.evaluation.images import flat_images
from vitlab.evaluation.judgement_pictures import dataset_images
from vitlab.evaluation.relevance import relevance
from vitlab.evaluation.trained_model import TrainedModel
from vitlab.runs import folder

Inputs = tuple[Tensor, list[str]]  # of the network, B C H W, and the images' names


def run_inputs(model: TrainedModel, run: Path, count: int) -> Inputs:
    """Some validation images of a run, or of its test split if it has none; always the same."""
    data = instantiate.build_object(folder.data_without_scan(folder.read_config(run)["data"], run))
    data.setup()
    split = "val" if data.samples["val"] else "test"
    rows = sorted(torch.randperm(data.samples[split], generator=torch.Generator().manual_seed(0))[:count].tolist())
    labels = [one_line(data.source.classes[label]) for label in data.split(split).labels[rows]]
    names = [f"{split} {row}, {label}" for row, label in zip(rows, labels, strict=True)]
    return model.prepare()(dataset_images(data, split, rows)), names


def user_inputs(model: TrainedModel, source: str, count: int) -> Inputs:
    """The first images of a file, a folder or a pattern."""
    files = [*flat_images(sorted(glob(source)) or source)][:count]
    return torch.stack([model.transform(file) for file in files]), [one_line(Path(file).name) for file in files]


def to_images(model: TrainedModel, inputs: Tensor) -> Tensor:
    """The images of a network's inputs, uint8 B C H W."""
    prepare = model.prepare()
    return ((inputs.cpu() - prepare.shift) / prepare.scale).round().clamp(0, 255).byte()


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
    probabilities: Tensor  # B classes
    targets: Tensor  # B
    maps: dict[str, Tensor]  # B R S each


def explain(model: TrainedModel, inputs: Tensor, target: int | None = None) -> Explanation:
    """The maps of images for a class, or for each image's predicted one.

    `attention` is that of the last block, the mean of its heads. A network without classes has no relevance.
    """
    ...
