"""The Lightning data module: a source, cut into train, validation and test, as batches on the device.

Every training batch reseeds torch from (seed, epoch, step, part of the step). The rest of the step (augmentation,
dropout, stochastic depth) then depends on nothing else, so a resumed run equals an uninterrupted one exactly, and two
devices draw the same random numbers as two accumulated batches on one device.

The Trainer must run with `use_distributed_sampler=False`.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader

from vitlab.config.bounds import Fraction, NonNegativeInt, PositiveInt, Rate, Seed, check_bounds
from vitlab.config.schema import Node
from vitlab.data.augment import Augment, Prepare
from vitlab.data.dataset import EvalBatch, FilesDataset, MemoryDataset, TrainBatch
from vitlab.data.sampler import EpochBatches, EvalBatches, count_steps, stable_seed
from vitlab.data.scan import SplitName, drop_bad_files
from vitlab.data.source import Source, Split, loader_facts
from vitlab.data.splitting import hold_out, stratified_split
from vitlab.distributed import environment

Loader = DataLoader[TrainBatch | EvalBatch]
MOST_WORKERS = 16  # per device


class DataModule(LightningDataModule):
    """Train, validation and test of one source; validation is its published split, or cut from train alone.

    Args:
        source: Loads the data set; called once.
        augment: How training images are varied.
        image_size: Of the model's input, a side or (height, width), in pixels.
        batch_size: Images of one optimizer step, over all devices and accumulated batches.
        seed: Decides the order and the augmentation.
        val_fraction: Share of the train split held out for validation, stratified by class, if the source has no
            split for it.
        split_seed: Which samples those are; apart from `seed`, so that repeats share them.
        num_workers: Processes per device that load; None: none for sets in memory, else the cores' share.
        drop_last: Leave out an epoch's incomplete step; False makes its steps equal to within one image.
        max_train_samples: Train on a stratified part of this size; validation and test stay complete.
        eval_batch_size: Images of one evaluation batch over all devices; None: `batch_size`.
        on_error: Of bad images in image folders. `raise`: an error. `skip`: every image is decoded once before
            training, and those that can't be are skipped, counted and listed.
        max_skipped: Share of the listed images above which `skip` refuses.
        scan: What `raise` reads before training: every file's header and end, all of it, or nothing.
        skipped_file: Where `skip` lists what it skipped; read instead of a new scan if there is such a file.
        mean: Subtracted from each channel, in units of the brightest value. None: that of the weights that training
            begins from, else the source's own.
        std: Divides each channel afterwards. None: likewise.
        interpolation: How images are resized. None: as for the weights that training begins from, else bicubic.
        scaled_decoding: For sets that aren't in memory: JPEG files to train on are decoded at 1/2, 1/4 or 1/8 where the
            crop is at least four times as large as `image_size`. Faster for large photographs, with slightly other
            pixels.
    """

    @check_bounds
    def __init__(
        self,
        *,
        source: Callable[[], Source],
        augment: Augment,
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt],
        batch_size: PositiveInt,
        seed: Seed,
        val_fraction: Annotated[Fraction, "the best checkpoint is chosen on that part"] = 0.1,
        split_seed: Seed = 0,
        num_workers: NonNegativeInt | None = None,
        drop_last: bool = False,
        max_train_samples: PositiveInt | None = None,
        eval_batch_size: PositiveInt | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: Annotated[Rate, "a share of the images"] = 0.01,
        scan: Literal["none", "headers", "decode"] = "headers",
        skipped_file: str | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        interpolation: Literal["bicubic", "bilinear"] | None = None,
        scaled_decoding: bool = False,
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_size: tuple[int, int] = (height, width)
        self.load_source, self.augment, self.batch_size, self.seed = source, augment, batch_size, seed
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.num_workers, self.drop_last, self.max_train_samples = num_workers, drop_last, max_train_samples
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.on_error, self.max_skipped, self.scan = on_error, max_skipped, scan
        self.mean, self.std, self.interpolation = mean, std, interpolation or "bicubic"
        self.scaled_decoding = scaled_decoding
        self.skipped_file = None if skipped_file is None else Path(skipped_file)
        self.tested: SplitName = "test"  # the split of the test loop: `evaluate.py` scores any
        self._source: Source | None = None
        self._splits: dict[SplitName, Split] = {}

    def prepare_data(self) -> None:
        """Load the source, which may download, in one process per machine before the others."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load the source and cut the splits, once. Raises `ValueError` for settings that don't fit the source."""
        if self._source is not None:
            return
        source = self.load_source()
        loader_facts(self.load_source).check(source)
        if problem := self._setting_problem(source):
            raise ValueError(problem)
        if source.train.files is not None:
            settings: Any = {"on_error": self.on_error, "max_skipped": self.max_skipped, "scan": self.scan}
            first = environment.local_rank(os.environ) == 0
            source = drop_bad_files(source, **settings, record=self.skipped_file, first=first)
        if len(only := set(source.train.labels.tolist())) == 1:
            name = source.classes[only.pop()]
            raise ValueError(f"{source.name} has the one class {name!r} to train on; classification needs two")
        if source.val is None:
            train, val = hold_out(source.train, self.val_fraction, seed=self.split_seed, knob="data.val_fraction")
        else:
            train, val = source.train, source.val
        if self.max_train_samples is not None and self.max_train_samples < len(train):
            limit, knob = self.max_train_samples, "data.max_train_samples"
            train = train.subset(stratified_split(train.labels, limit, seed=self.split_seed, knob=knob)[1])
        self._splits = {"train": train, "val": val, "test": source.test}
        mean, std = (per_channel(*each, source) for each in (("mean", self.mean), ("std", self.std)))
        self._prepare = Prepare(image_size=self.image_size, mean=mean, std=std, interpolation=self.interpolation)
        self.mean, self.std = mean, std
        self._source = source

    def _setting_problem(self, source: Source) -> str | None:
        augment, in_memory = self.augment, source.train.files is None
        if augment.crop_padding and not in_memory:
            return (
                f"data.augment.crop_padding={augment.crop_padding} is for data sets in memory; image folders take "
                f"random crops by data.augment.crop_scale, so set crop_padding to 0"
            )
        if augment.auto_augment != "none" and source.channels not in (1, 3):
            channels = f"works on 1 or 3 channels, and {source.name} has {source.channels}; set it to none"
            return f"data.augment.auto_augment={augment.auto_augment} {channels}"
        if self.scaled_decoding and in_memory:
            return f"data.scaled_decoding=true is for JPEG files, and {source.name} is in memory; leave it out"
        if self.on_error == "skip" and in_memory:
            return f"data.on_error=skip is for image folders, and {source.name} is none; leave it out"
        return None

    @property
    def source(self) -> Source:
        if self._source is None:
            raise RuntimeError("the data isn't loaded yet: call setup() first")
        return self._source

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def num_classes(self) -> int:
        return len(self.source.classes)

    @property
    def channels(self) -> int:
        return self.source.channels

    @property
    def samples(self) -> dict[str, int]:
        return {name: len(split) for name, split in self._splits.items()}

    def preprocessing(self) -> dict[str, Any]:
        """The preparation of images by the names of the settings; sets in memory aren't cropped: no fraction."""
        return {
            "mean": list(self.mean or self.source.mean),
            "std": list(self.std or self.source.std),
            "interpolation": self.interpolation,
            "crop_fraction": None if self.source.train.files is None else self.augment.crop_fraction,
        }

    def fingerprint(self) -> Node:
        """Names, numbers of images and, for each split, a digest of its labels and of its images."""
        fingerprint: Node = {"data set": self.source.name, "classes": list(self.classes)}
        for name, split in self._splits.items():
            fingerprint |= {f"{name} images": len(split), f"{name} digest": split.digest()}
        return fingerprint

    def split(self, name: SplitName) -> Split:
        return self._splits[name]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, on any number of devices; fewer under trainer.limit_train_batches."""
        steps = count_steps(self.samples["train"], self.batch_size, self.drop_last)
        if self.trainer is None:
            return steps
        limit, accumulate = self.trainer.limit_train_batches, self.trainer.accumulate_grad_batches
        batches = steps * accumulate
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return -(-batches // accumulate)

    def position(self) -> tuple[int, int]:
        """The position of training: (epoch, optimizer steps of it already done)."""
        done = 0 if self.trainer is None else self.trainer.global_step
        return divmod(done, max(1, self.steps_per_epoch))

    def train_dataloader(self) -> Loader:
        """The training batches of this device, from `position` on."""
        # Lightning asks for a `state_dict`; the batches continue from `position` without one
        warnings.filterwarnings("ignore", message=".*ended before the epoch ended and your dataloader is not")
        rank, world_size = self._rank_and_world_size()
        batches = EpochBatches(
            samples=self.samples["train"],
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            accumulate=1 if self.trainer is None else self.trainer.accumulate_grad_batches,
            drop_last=self.drop_last,
            position=self.position,
            blocks=self._splits["train"].blocks if self.source.shuffle_buffer else None,
            buffer=self.source.shuffle_buffer or 0,
        )
        return self._loader("train", batches, training=True)

    def val_dataloader(self) -> Loader:
        return self.loader("val")

    def test_dataloader(self) -> Loader:
        """The test split, or the one that `tested` names, for this device."""
        return self.loader(self.tested)

    def loader(self, split: SplitName) -> Loader:
        """This device's share of any split, in order and without augmentation."""
        rank, world_size = self._rank_and_world_size()
        samples, in_blocks = len(self._splits[split]), self._splits[split].blocks is not None
        shape = {"samples": samples, "batch_size": self.eval_batch_size, "rank": rank, "world_size": world_size}
        return self._loader(split, EvalBatches(**shape, in_blocks=in_blocks), training=False)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment and normalize on the device; a training batch reseeds torch first."""
        if not isinstance(batch, TrainBatch | EvalBatch):
            return batch
        prepare = self._prepare.to(batch.images.device)
        if isinstance(batch, TrainBatch):
            if self.trainer is not None and (batch.epoch, batch.step) != self.position():
                raise RuntimeError(
                    f"the loader returned the batch of epoch {batch.epoch}, step {batch.step} instead of "
                    f"{self.position()}: it was started before the position of training was known"
                )
            reseed(stable_seed(self.seed, batch.epoch, batch.step, batch.micro), batch.images.device)
            cropped = self._splits["train"].files is not None
            settings = {"prepare": prepare, "num_classes": self.num_classes, "cropped": cropped}
            images, targets = self.augment(batch.images, batch.targets, **settings)
            batch = batch._replace(images=images, targets=targets)
        else:
            batch = batch._replace(images=prepare(batch.images))
        # Lightning converted the batch to the Trainer's precision while it was still uint8
        return batch if self.trainer is None else self.trainer.precision_plugin.convert_input(batch)

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, name: SplitName, batches: EpochBatches | EvalBatches, *, training: bool) -> Loader:
        split = self._splits[name]
        if split.files is None:
            dataset: MemoryDataset | FilesDataset = MemoryDataset(split, training=training)
        else:
            images: Any = {"image_size": self.image_size, "augment": self.augment, "interpolation": self.interpolation}
            images |= {"seed": self.seed, "scaled_decoding": self.scaled_decoding}
            dataset = FilesDataset(split, training=training, **images)
        workers = self._workers(in_memory=split.files is None)
        return DataLoader(
            dataset,
            batch_sampler=batches,  # type: ignore[arg-type]  # a plan instead of a list of indices
            collate_fn=_identity,  # type: ignore[arg-type]  # the data set returns a batch
            num_workers=workers,
            pin_memory=self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator),
            persistent_workers=workers > 0 and name != "test",
            generator=torch.Generator().manual_seed(self.seed),  # else each epoch draws from torch's own
        )

    def _workers(self, *, in_memory: bool) -> int:
        if self.num_workers is not None:
            return self.num_workers
        if in_memory:
            # a batch is one selection of rows: sending it between processes would cost more
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            return 0
        devices = 1 if self.trainer is None else self.trainer.num_devices
        return min(MOST_WORKERS, max(1, environment.cores() // devices))


def per_channel(knob: str, values: tuple[float, ...] | None, source: Source) -> tuple[float, ...]:
    """A number for each of the source's channels: the given ones (their mean for gray images), or the source's own."""
    if values is None:
        return source.mean if knob == "mean" else source.std
    if source.channels == 1 and len(values) > 1:
        return (sum(values) / len(values),)
    if len(values) != source.channels:
        raise ValueError(
            f"data.{knob}={list(values)} is for {len(values)} channels, and {source.name} has {source.channels}"
        )
    return tuple(values)


def reseed(seed: int, device: torch.device) -> None:
    """`torch.manual_seed` for the CPU and one device; torch's own takes 1 ms, for devices that aren't there."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _identity(batch: TrainBatch | EvalBatch) -> TrainBatch | EvalBatch:
    return batch
