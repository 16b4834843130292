"""The Lightning data module: a source, cut into train, validation and test, as batches on the device.

Every training batch reseeds torch from (seed, epoch, step, part of the step). All that follows in the step
(augmentation, dropout, stochastic depth) then depends on nothing else, so a resumed run repeats exactly what
an uninterrupted one does, and two devices draw what two accumulated batches on one device draw.

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
from vitlab.data.scan import Duplicate, SplitName, common_folder, drop_bad_files, warn_of_duplicates
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
        image_size: What the model sees, a side or (height, width), in pixels.
        batch_size: Images of one optimizer step, over all devices and accumulated batches.
        seed: Decides the order and the augmentation.
        val_fraction: Share of the train split held out for validation, stratified by class, if the source has no
            split for it.
        split_seed: Which samples those are; apart from `seed`, so that repeats share them.
        num_workers: Processes per device that load; None: none for sets in memory, else the cores' share.
        drop_last: Leave out an epoch's incomplete step; False makes its steps equal to within one image.
        max_train_samples: Train on a stratified part of this size; validation and test stay complete.
        eval_batch_size: Images of one evaluation batch over all devices; None: `batch_size`.
        on_error: Image folders: what happens for bad images. `raise`: an error. `skip`: every image is decoded once
            before training, and those that can't be are skipped, counted and listed.
        max_skipped: Share of the listed images above which `skip` refuses.
        scan: How closely `raise` looks before training: at every file's header and end, or at all of it (which also
            finds files with equal content in several splits), or not at all.
        skipped_file: Where `skip` lists what it skipped; read instead of a new scan if there is such a file.
        mean: Subtracted from each channel, in units of the brightest value. None: what the weights that training begins
            from were trained with, else the source's own.
        std: What each channel is divided by, then.
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
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(sides) != 2:
            raise ValueError(f"image_size={image_size} must be a number of pixels, or two")
        self.image_size: tuple[int, int] = (sides[0], sides[1])
        self.load_source, self.augment, self.batch_size, self.seed = source, augment, batch_size, seed
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.num_workers, self.drop_last = num_workers, drop_last
        self.max_train_samples = max_train_samples
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.on_error, self.max_skipped, self.scan = on_error, max_skipped, scan
        self.mean, self.std, self.interpolation = mean, std, interpolation or "bicubic"
        self.scaled_decoding = scaled_decoding
        self.skipped_file = None if skipped_file is None else Path(skipped_file)
        self.tested: SplitName = "test"  # what the test loop runs on: `evaluate.py` scores any split
        self._source: Source | None = None
        self._splits: dict[SplitName, Split] = {}

    def prepare_data(self) -> None:
        """Load the source, which may download, in one process per machine before the others."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load the source and cut the splits, once; needs no Trainer.

        Raises:
            ValueError: a split can't be cut, or a knob doesn't go with the source.
        """
        if self._source is not None:
            return
        source = self.load_source()
        loader_facts(self.load_source).check(source)
        if source.train.files is not None and self.augment.crop_padding:
            raise ValueError(
                f"data.augment.crop_padding={self.augment.crop_padding} is for data sets in memory; image "
                f"folders take random crops by data.augment.crop_scale, so set crop_padding to 0"
            )
        if source.channels not in (1, 3) and self.augment.auto_augment != "none":
            raise ValueError(
                f"data.augment.auto_augment={self.augment.auto_augment} works on 1 or 3 channels, and "
                f"{source.name} has {source.channels}; set it to none"
            )
        if source.train.files is None and self.scaled_decoding:
            raise ValueError(
                f"data.scaled_decoding=true is for JPEG files, and {source.name} lies in memory; leave it out"
            )
        copies: list[Duplicate] = []
        if source.train.files is not None:
            source, copies = drop_bad_files(
                source,
                on_error=self.on_error,
                max_skipped=self.max_skipped,
                scan=self.scan,
                record=self.skipped_file,
                first=environment.local_rank(os.environ) == 0,
            )
        elif self.on_error == "skip":
            raise ValueError(f"data.on_error=skip is for image folders, and {source.name} is none; leave it out")
        if len(only := set(source.train.labels.tolist())) == 1:
            name = source.classes[only.pop()]
            raise ValueError(f"{source.name} has the one class {name!r} to train on; classification needs two")
        if source.val is None:
            train, val = hold_out(source.train, self.val_fraction, seed=self.split_seed, knob="data.val_fraction")
        else:
            train, val = source.train, source.val
        if self.max_train_samples is not None and self.max_train_samples < len(train):
            _, part = stratified_split(
                train.labels, self.max_train_samples, seed=self.split_seed, knob="data.max_train_samples"
            )
            train = train.subset(part)
        self._splits = {"train": train, "val": val, "test": source.test}
        if copies:
            warn_of_duplicates(copies, self._splits, common_folder(source), self.skipped_file)
        mean, std = (per_channel(*each, source) for each in (("mean", self.mean), ("std", self.std)))
        self._prepare = Prepare(image_size=self.image_size, mean=mean, std=std, interpolation=self.interpolation)
        self.mean, self.std = mean, std
        self._source = source

    @property
    def source(self) -> Source:
        """What `setup` loaded."""
        if self._source is None:
            raise RuntimeError("the data isn't loaded yet: call setup() first")
        return self._source

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return self.source.classes

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.source.classes)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.source.channels

    @property
    def samples(self) -> dict[str, int]:
        """Number of images of each split."""
        return {name: len(split) for name, split in self._splits.items()}

    def preprocessing(self) -> dict[str, Any]:
        """How images are prepared, by the names of the settings; sets in memory aren't cropped: no fraction."""
        return {
            "mean": list(self.mean or self.source.mean),
            "std": list(self.std or self.source.std),
            "interpolation": self.interpolation,
            "crop_fraction": None if self.source.train.files is None else self.augment.crop_fraction,
        }

    def fingerprint(self) -> Node:
        """Names, numbers of images and, for each split, a digest of its labels and of its images."""
        found: Node = {"data set": self.source.name, "classes": list(self.classes)}
        for name in ("train", "val", "test"):
            split = self.split(name)
            found[f"{name} images"], found[f"{name} digest"] = len(split), split.digest()
        return found

    def split(self, name: SplitName) -> Split:
        """The images and labels of a split."""
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
        """Where training stands: (epoch, optimizer steps of it already done)."""
        done = 0 if self.trainer is None else self.trainer.global_step
        return divmod(done, max(1, self.steps_per_epoch))

    def train_dataloader(self) -> Loader:
        """The training batches of this device, from where training stands."""
        # Lightning asks for a `state_dict`; the batches go on from `position` without one
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
        """The validation split, for this device."""
        return self.loader("val")

    def test_dataloader(self) -> Loader:
        """The test split, or what `tested` names, for this device."""
        return self.loader(self.tested)

    def loader(self, split: SplitName) -> Loader:
        """Any split in order and without augmentation: this device's share of it."""
        rank, world_size = self._rank_and_world_size()
        batches = EvalBatches(
            samples=len(self._splits[split]),
            batch_size=self.eval_batch_size,
            rank=rank,
            world_size=world_size,
            in_blocks=self._splits[split].blocks is not None,
        )
        return self._loader(split, batches, training=False)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment and normalise on the device; a training batch reseeds torch first."""
        if not isinstance(batch, TrainBatch | EvalBatch):
            return batch
        prepare = self._prepare.to(batch.images.device)
        if isinstance(batch, TrainBatch):
            if self.trainer is not None and (batch.epoch, batch.step) != self.position():
                raise RuntimeError(
                    f"the batch of epoch {batch.epoch}, step {batch.step} came where {self.position()} was due: the "
                    f"loader was started before the training's place was known"
                )
            reseed(stable_seed(self.seed, batch.epoch, batch.step, batch.micro), batch.images.device)
            images, targets = self.augment(
                batch.images,
                batch.targets,
                prepare=prepare,
                num_classes=self.num_classes,
                cropped=self._splits["train"].files is not None,
            )
            batch = batch._replace(images=images, targets=targets)
        else:
            batch = batch._replace(images=prepare(batch.images))
        # Lightning converted the batch to the Trainer's precision while it was still uint8
        return batch if self.trainer is None else self.trainer.precision_plugin.convert_input(batch)

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, name: SplitName, batches: EpochBatches | EvalBatches, *, training: bool) -> Loader:
        split = self._splits[name]
        dataset: MemoryDataset | FilesDataset
        if split.files is None:
            dataset = MemoryDataset(split, training=training)
        else:
            dataset = FilesDataset(
                split,
                image_size=self.image_size,
                augment=self.augment,
                seed=self.seed,
                training=training,
                interpolation=self.interpolation,
                scaled_decoding=self.scaled_decoding,
            )
        workers = self._workers(in_memory=split.files is None)
        return DataLoader(
            dataset,
            batch_sampler=batches,  # type: ignore[arg-type]  # a plan instead of a list of indices
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # the data set answers with a batch
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
        return min(
            MOST_WORKERS, max(1, environment.cores() // (1 if self.trainer is None else self.trainer.num_devices))
        )


def per_channel(knob: str, values: tuple[float, ...] | None, source: Source) -> tuple[float, ...]:
    """A number for each of the source's channels: those asked for (their mean for grey images), or the source's own."""
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
    """`torch.manual_seed` for the CPU and the one device in use.

    torch's own also leaves a note, with a stack trace, for each kind of device that isn't there: 1 ms a call.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _as_it_is(batch: TrainBatch | EvalBatch) -> TrainBatch | EvalBatch:
    return batch
