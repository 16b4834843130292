"""Datasets that return complete batches, from memory or from files, and their DataLoader.

The batch sampler yields a `BatchPlan`, which the loader passes to `__getitems__`; so a batch has its position in
training. The augmentation of a file depends on (seed, epoch, index, repeat) alone, never on the workers.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from vitlab.data.augment import Augment
from vitlab.data.crops import REFLECTION, cover
from vitlab.data.decode import read_image
from vitlab.data.jpeg import BICUBIC, Box, decode_crop
from vitlab.data.sampler import BatchPlan, stable_seed
from vitlab.data.source import Split


class TrainBatch(NamedTuple):
    """A device's part of one optimizer step; uint8 as loaded, float and normalized later, on the device."""

    images: Tensor  # [b, C, H, W]
    targets: Tensor  # int64 [b], or float [b, classes] under Mixup or CutMix
    # images of the complete step, over all devices and accumulated batches
    count: int  # type: ignore[assignment]  # tuple has a method of this name
    epoch: int
    step: int  # optimizer step within the epoch
    micro: int = 0  # which part of the step


class EvalBatch(NamedTuple):
    """A device's batch of evaluation."""

    images: Tensor  # [b, C, H, W]
    targets: Tensor  # int64 [b]


Loader = DataLoader[TrainBatch | EvalBatch]


def size_at(schedule: Mapping[int, int], image_size: tuple[int, int], epoch: int) -> tuple[int, int]:
    """Height and width of training images in an epoch: of the last phase that has begun, if any."""
    begun = [start for start in schedule if start <= epoch]
    return (schedule[max(begun)],) * 2 if begun else image_size


def make_batch(images: Tensor, targets: Tensor, plan: BatchPlan, training: bool) -> TrainBatch | EvalBatch:
    if training:
        return TrainBatch(images, targets, plan.count, plan.epoch, plan.step, plan.micro)
    return EvalBatch(images, targets)


class MemoryDataset(Dataset[TrainBatch | EvalBatch]):
    """A split in memory; batches are uint8 as stored."""

    def __init__(self, split: Split, *, training: bool) -> None:
        self.split, self.training = split, training

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, plan: BatchPlan) -> TrainBatch | EvalBatch:
        rows = torch.tensor(plan.indices, dtype=torch.long)
        return make_batch(self.split.images_at(rows), self.split.labels[rows], plan, self.training)


class FilesDataset(Dataset[TrainBatch | EvalBatch]):
    """A split of files, decoded to RGB uint8 at `image_size` (height, width).

    Training: the crop of `augment`, drawn before the file is decoded if it is `inception`, then flip, auto-augmentation
    and color jitter.
    Evaluation: a center crop that keeps `augment.crop_fraction` of the short side.
    """

    def __init__(
        self,
        split: Split,
        *,
        image_size: tuple[int, int],
        augment: Augment,
        seed: int,
        training: bool,
        interpolation: Literal["bicubic", "bilinear"] = "bicubic",
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        scaled_decoding: bool = False,
        train_size: Callable[[int], tuple[int, int]] | None = None,
    ) -> None:
        assert split.files is not None
        self.files, self.labels, self.seed, self.training = split.files, split.labels, seed, training
        self.image_size, self.crop_fraction = image_size, augment.crop_fraction
        self.train_size = train_size if train_size and training else lambda epoch: image_size
        self.interpolation, self.scaled_decoding = v2.InterpolationMode(interpolation), scaled_decoding
        self.crop, self.crop_interpolation = augment.crop or "inception", augment.crop_interpolation or interpolation
        self.crop_antialias = augment.crop_antialias
        self.inception = v2.RandomResizedCrop(image_size, augment.crop_scale)
        padding = augment.crop_padding or REFLECTION
        self.shift = v2.RandomCrop(image_size, padding=padding, padding_mode="reflect")
        self.steps: list[Callable[[Tensor], Tensor]] = [v2.RandomHorizontalFlip()] if augment.flip else []
        if augment.auto_augment != "none":
            self.steps.append(augment.auto(interpolation, mean).image_transform())
        if augment.color_jitter:
            self.steps.append(v2.ColorJitter(*(augment.color_jitter,) * 3))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, plan: BatchPlan) -> TrainBatch | EvalBatch:
        self.size = self.shift.size = self.train_size(plan.epoch)  # of the crops
        images = torch.empty(len(plan.indices), 3, *self.size, dtype=torch.uint8)
        with torch.random.fork_rng(devices=[]):
            for place, index in enumerate(plan.indices):
                if self.training:
                    repeat = plan.repeats[place : place + 1]  # empty without repeats
                    images[place] = self._augment(index, plan.epoch, *repeat)
                else:
                    image = read_image(self.files[index])
                    images[place] = center_crop(image, self.image_size, self.crop_fraction, self.interpolation)
        return make_batch(images, self.labels[torch.tensor(plan.indices, dtype=torch.long)], plan, self.training)

    def _augment(self, index: int, epoch: int, *repeat: int) -> Tensor:
        seed = stable_seed(self.seed, epoch, index, *repeat)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed is slower
        image = self._crop(self.files[index])
        for step in self.steps:
            image = step(image)
        return image

    def _crop(self, path: str) -> Tensor:
        name = self.crop_interpolation
        if name == "random":
            name = "bilinear" if torch.rand(()) < 0.5 else "bicubic"
        mode = v2.InterpolationMode(name)
        if self.crop == "none":
            return center_crop(read_image(path), self.size, self.crop_fraction, mode)
        if self.crop == "simple":
            shifted: Tensor = self.shift(cover(read_image(path), self.size, mode, antialias=self.crop_antialias))
            return shifted
        settings = {"interpolation": mode, "antialias": self.crop_antialias, "scaled": self.scaled_decoding}
        return read_image(path, partial(decode_crop, choose=self._box, size=self.size, **settings))

    def _box(self, height: int, width: int) -> Box:
        """A random crop of an image, as torchvision draws it."""
        return Box(**self.inception.make_params([torch.empty(1).expand(1, height, width)]))  # only the shape is used


def build_loader(
    dataset: MemoryDataset | FilesDataset, plans: Sampler[BatchPlan], *, workers: int, keep: bool, pin: bool, seed: int
) -> Loader:
    """A loader that keeps its worker processes if `keep`, and pins memory if `pin`."""
    loading: Any = {"num_workers": workers, "pin_memory": pin, "persistent_workers": keep and workers > 0}
    loading |= {"collate_fn": nn.Identity()}  # the dataset returns a batch
    loading |= {"generator": torch.Generator().manual_seed(seed)}  # else each epoch draws from torch's default one
    return DataLoader(dataset, batch_sampler=plans, **loading)  # type: ignore[arg-type]  # plans, not lists of indices


def center_crop(
    image: Tensor, image_size: tuple[int, int], crop_fraction: float, interpolation: v2.InterpolationMode = BICUBIC
) -> Tensor:
    """[C, H, W] resized to just cover `image_size` / `crop_fraction`, and its center of `image_size`."""
    covered = cover(image, (int(image_size[0] / crop_fraction), int(image_size[1] / crop_fraction)), interpolation)
    cropped: Tensor = v2.functional.center_crop(covered, list(image_size))
    return cropped
