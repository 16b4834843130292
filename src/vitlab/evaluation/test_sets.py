"""Folders of images as a test of a network that was trained on others, by the protocols and lists of timm."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.file_list import images_below
from vitlab.data.source import Source, Split
from vitlab.evaluation.checks import class_index
from vitlab.evaluation.trained_model import TrainedModel
from vitlab.runs.folder import read_yaml

LISTS = files("timm.data._info")
IDS = (LISTS / "imagenet_synsets.txt").read_text().split()  # of ImageNet's classes, in WordNet
OF_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\.")  # an image of ImageNet's validation split, from 1

log = logging.getLogger(__name__)


def build_test(
    model: TrainedModel, folder: Path, kind: str, class_map: str | None, **options: Any
) -> tuple[nn.Module, DataModule, Tensor]:
    """A network of the logits that compete, the data, and the classes that are right for a label, bool [labels, K]."""
    network: Any = model.network
    names = model.classes or (IDS if network.num_classes == len(IDS) else [*map(str, range(network.num_classes))])
    own = {name: number for number, name in enumerate(names)}
    if len(names) == len(IDS) and not own.keys() & set(IDS):
        own |= {name: number for number, name in enumerate(IDS)}  # ImageNet's 1,000 classes, in their order
    logits = [*range(len(names))]
    if kind in ("imagenet-a", "imagenet-r"):
        logits = [own[name] for name in (LISTS / f"imagenet_{kind[-1]}_synsets.txt").read_text().split() if name in own]
    rows, chosen, labels, count = dict[tuple[int, ...], int](), list[str](), list[int](), 0
    for images, classes in labeled_images(folder, kind, class_map, own, tuple(names)):
        count += len(images)
        if right := tuple(k for k, number in enumerate(logits) if number in classes):
            chosen += images
            labels += [rows.setdefault(right, len(rows))] * len(images)
    log.info("%d of %d images have a right class among the %d that compete", len(chosen), count, len(logits))
    if not chosen:
        raise ValueError(f"test_dir={folder} has no images of the network's classes; test_set={kind} needs others")
    accepted, numbers = torch.zeros(len(rows), len(logits), dtype=torch.bool), torch.tensor(logits)
    for right, row in rows.items():
        accepted[row, list(right)] = True
    network.register_forward_hook(lambda _, inputs, outputs: outputs[:, numbers.to(outputs.device)])
    if model.channels == 1:  # the luminance of colors
        weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        network.register_forward_pre_hook(lambda _, x: (x[0] * weights.to(x[0])).sum(dim=1, keepdim=True))
    unused = Split(None, torch.tensor([0, 1]), chosen[:1] * 2)  # nothing is trained
    listed = Split(None, torch.zeros(len(chosen), dtype=torch.long), chosen)
    mean, std = (values * (3 // len(values)) for values in (model.mean, model.std))
    source = Source("test set", tuple(names[n] for n in logits), 3, mean, std, None, train=unused, test=listed)
    options |= {"image_size": model.image_size, "interpolation": model.interpolation, "val_fraction": 0.0}
    data = DataModule(source=lambda: source, augment=Augment(crop_fraction=model.crop_fraction or 1.0), **options)
    data.setup()
    data._splits["test"] = Split(None, torch.tensor(labels), chosen)  # there may be more labels than classes
    return network, data, accepted


def labeled_images(
    folder: Path, kind: str, class_map: str | None, own: Mapping[str, int], names: tuple[str, ...]
) -> Iterator[tuple[list[str], list[int | None]]]:
    """Paths, with the numbers of the network's classes that are right for them; None: a class that it doesn't have."""
    if kind == "imagenet-real":
        real = json.loads((LISTS / "imagenet_real_labels.json").read_text())
        for path in sorted(images_below(str(folder), {}, set())):
            if number := OF_VALIDATION.match(Path(path).name):
                yield [path], [own.get(IDS[k]) for k in real[int(number[1]) - 1]]
        return
    known, mapping = {*IDS, None}, {str(k): v for k, v in read_yaml(Path(class_map)).items()} if class_map else {}
    for name in sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
        meant = mapping.get(name, name)
        values = meant if isinstance(meant, list) else [meant]
        right = [own.get(v) if v in own or v in known else class_index(names, v, f"class_map: {name}") for v in values]
        yield sorted(images_below(str(folder / name), {}, set())), right
