"""The LightningDataModule: batches of the train, validation and test splits of one source.

Every training batch reseeds torch from (seed, epoch, step, part of the step). So a resumed run equals an uninterrupted
one exactly, and two devices draw the same random numbers as two accumulated batches on one device.

The Trainer must run with `use_distributed_sampler=False`.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from vitlab.config.bounds import NonNegativeInt, PositiveInt, Rate, Seed, check_bounds
from vitlab.config.schema import Node
from vitlab.data.augment import Augment, Prepare, per_channel
from vitlab.data.dataset import EvalBatch, FilesDataset, Loader, MemoryDataset, TrainBatch, build_loader, size_at
from vitlab.data.sampler import EpochBatches, EvalBatches, count_steps, reseed, stable_seed
from vitlab.data.scan import SplitName, drop_bad_files
from vitlab.data.source import Source, Split, loader_facts
from vitlab.data.splitting import hold_out, stratified_split
from vitlab.distributed import environment

MOST_WORKERS = 16  # per device


class DataModule(LightningDataModule):
    """Train, validation and test splits of one source; validation is its published split, or held out from train.

    Args:
        source: Loads the data set; called once.
        augment: The augmentation of training images.
        image_size: Input size of the model in pixels, a side or (height, width).
        size_schedule: Size of training images from an epoch on, such as {0: 160, 60: 192}. Evaluation has `image_size`,
            as have the ViT's positions, which are resampled for other sizes.
        batch_size: Images per optimizer step, over all devices and accumulated batches.
        seed: Seed of the order and the augmentation.
        val_fraction: Share of the train split that is held out for validation, stratified by class, if the source has
            no validation split. 0: nothing is held out, and the last weights are tested, as in most published recipes.
        split_seed: Seed of that split; separate from `seed`, so that runs with several seeds have the same split.
        num_workers: Loading processes per device; None: 0 for sets in memory, else the device's share of the cores.
        drop_last: Drop the incomplete last step of an epoch; if False, the sizes of steps differ by at most one image.
        repeats: Repeated augmentation: how often an image is in an epoch, augmented each time. The epoch is as long, so
            it has other images in turn. `drop_last` makes it as long as DeiT's.
        max_train_samples: Train on a stratified subset of this size; validation and test stay complete.
        eval_batch_size: Images per evaluation batch over all devices; None: `batch_size`.
        on_error: What to do about bad image files. `raise`: an error. `skip`: decode every image once before training;
            skip and list the bad ones.
        max_skipped: Largest share of the images that `skip` may skip.
        scan: What `raise` reads before training: each file's header and end, all bytes, or nothing.
        skipped_file: Where `skip` lists the skipped files; an existing list is read instead of a new scan.
        mean: Mean per channel, of images scaled to [0, 1]. None: that of the weights that training starts from, else
            the source's.
        std: Standard deviation per channel; None: likewise.
        interpolation: Of resizing; None: that of the weights that training starts from, else bicubic.
        scaled_decoding: Decode JPEG files at 1/2, 1/4 or 1/8 if the training crop is at least four times as large as
            `image_size`. Faster for large photographs, with slightly different pixels. For sets that aren't in memory.
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
        val_fraction: Annotated[Rate, "the best checkpoint is chosen on that part; 0 is off"] = 0.1,
        split_seed: Seed = 0,
        num_workers: NonNegativeInt | None = None,
        drop_last: bool = False,
        repeats: PositiveInt = 1,
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
        size_schedule: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.train_size = partial(size_at, dict(size_schedule or {}), self.image_size)  # of an epoch
        self.train_sizes = {self.train_size(epoch) for epoch in (0, *(size_schedule or {}))}
        self.load_source, self.augment, self.batch_size, self.seed = source, augment, batch_size, seed
        self.val_fraction, self.split_seed, self.max_train_samples = val_fraction, split_seed, max_train_samples
        self.num_workers, self.drop_last, self.scaled_decoding = num_workers, drop_last, scaled_decoding
        self.repeats, self.tuples = repeats, False  # True: batches are (images, targets), for others' modules
        self.epoch, self.is_first = 0, False  # of iterations without a Trainer; whether the next batch is the first one
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.on_error, self.max_skipped, self.scan = on_error, max_skipped, scan
        self.mean, self.std, self.interpolation = mean, std, interpolation or "bicubic"
        self.skipped_file = None if skipped_file is None else Path(skipped_file)
        self.tested: SplitName = "test"  # the split of the test loop; `evaluate.py` may set another
        self.view: Callable[[Any], Any] | None = None  # of the data set of an evaluation
        self._source: Source | None = None
        self._splits: dict[SplitName, Split] = {}

    def prepare_data(self) -> None:
        self.setup()  # may download, in one process per machine before the others

    def setup(self, stage: str | None = None) -> None:
        """Load the source and split it, once. Raises `ValueError` for settings that don't fit the source."""
        if self._source is not None:
            return
        source = self.load_source()
        loader_facts(self.load_source).check(source)
        in_memory, name = source.train.files is None, source.name
        self.augment.check(name, in_memory=in_memory, channels=source.channels)
        if self.scaled_decoding and in_memory:
            raise ValueError(f"data.scaled_decoding=true is for JPEG files, and {name} is in memory; leave it out")
        if self.on_error == "skip" and in_memory:
            raise ValueError(f"data.on_error=skip is for image folders, and {name} is none; leave it out")
        if not in_memory:
            settings: Any = {"on_error": self.on_error, "max_skipped": self.max_skipped, "scan": self.scan}
            source = drop_bad_files(source, **settings, record=self.skipped_file)
        if len(only := set(source.train.labels.tolist())) == 1:
            only_class = source.classes[only.pop()]
            raise ValueError(f"{name} has the one class {only_class!r} to train on; classification needs two")
        train, val = source.train, source.val
        if val is None and self.val_fraction:
            train, val = hold_out(train, self.val_fraction, seed=self.split_seed, knob="data.val_fraction")
        if self.max_train_samples is not None and self.max_train_samples < len(train):
            knob, seed = "data.max_train_samples", self.split_seed
            train = train.subset(stratified_split(train.labels, self.max_train_samples, seed=seed, knob=knob)[1])
        splits: dict[SplitName, Split | None] = {"train": train, "val": val, "test": source.test}
        self._splits = {name: split for name, split in splits.items() if split is not None}
        self.mean = per_channel("mean", self.mean, source.mean, source)
        self.std = per_channel("std", self.std, source.std, source)
        size, mode = self.image_size, self.interpolation
        self._prepare = Prepare(image_size=size, mean=self.mean, std=self.std, interpolation=mode)
        self._source = replace(source, train=train, val=val, test=source.test)

    @property
    def source(self) -> Source:
        if self._source is None:
            raise RuntimeError("the data isn't loaded yet: call setup() first")
        return self._source

    @property
    def num_classes(self) -> int:
        return len(self.source.classes)

    @property
    def channels(self) -> int:
        return self.source.channels

    @property
    def samples(self) -> dict[str, int]:
        return {"train": 0, "val": 0, "test": 0} | {name: len(split) for name, split in self._splits.items()}

    def preprocessing(self) -> dict[str, Any]:
        """The settings by which images are prepared; no `crop_fraction` for sets in memory, which aren't cropped."""
        return {
            "mean": list(self.mean or self.source.mean),
            "std": list(self.std or self.source.std),
            "interpolation": self.interpolation,
            "crop_fraction": None if self.source.train.files is None else self.augment.crop_fraction,
        }

    def fingerprint(self) -> Node:
        fingerprint: Node = {"data set": self.source.name, "classes": list(self.source.classes)}
        for name, split in self._splits.items():
            fingerprint |= {f"{name} images": len(split), f"{name} digest": split.digest()}
        return fingerprint

    def split(self, name: SplitName) -> Split:
        if name not in self._splits:
            raise ValueError("data.val_fraction=0 leaves no validation split; set it above 0, as in 0.1")
        return self._splits[name]

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a device in an epoch; fewer under trainer.limit_train_batches."""
        steps = count_steps(self.samples["train"], self.batch_size, self.drop_last)
        if self.trainer is None:
            return steps
        limit, batches = self.trainer.limit_train_batches, steps * self.trainer.accumulate_grad_batches
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, on any number of devices."""
        accumulate = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        return -(-self.batches_per_epoch // accumulate)

    def position(self) -> tuple[int, int]:
        """The epoch of training, and its optimizer steps already done."""
        if self.trainer is None:
            return self.epoch, 0
        if not getattr(self.trainer.lightning_module, "automatic_optimization", True):  # any number of steps a batch
            return self.trainer.current_epoch, 0
        return divmod(self.trainer.global_step, max(1, self.steps_per_epoch))

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration over `train_dataloader()` without a Trainer; each one begins another."""
        self.epoch = epoch

    def begin_epoch(self) -> tuple[int, int]:
        """The position at which an iteration begins."""
        position, self.is_first = self.position(), True
        self.epoch += self.trainer is None
        return position

    def train_dataloader(self) -> Loader:
        callbacks: Any = getattr(self.trainer, "callbacks", None) or ()
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
            unknown = "the epoch of a step, by which DataModule finds its images"
            raise ValueError(
                f"GradientAccumulationScheduler changes {unknown}; set accumulate_grad_batches of the Trainer"
            )
        # the batches resume at `position` without the `state_dict` that Lightning warns of
        warnings.filterwarnings("ignore", message=".*ended before the epoch ended and your dataloader is not")
        buffer = self.source.shuffle_buffer
        batches = EpochBatches(
            samples=self.samples["train"],
            batch_size=self.batch_size,
            seed=self.seed,
            accumulate=1 if self.trainer is None else self.trainer.accumulate_grad_batches,
            drop_last=self.drop_last,
            repeats=self.repeats,
            position=self.begin_epoch,
            limit=None if self.trainer is None else self.batches_per_epoch,
            one_order=bool(getattr(self.trainer, "overfit_batches", 0)),
            blocks=self._splits["train"].blocks if buffer else None,
            buffer=buffer or 0,
            **self._share(),
        )
        return self._loader("train", batches, training=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        return self.loader("val") if "val" in self._splits else []

    def test_dataloader(self) -> Loader:
        return self.loader(self.tested)

    def predict_dataloader(self) -> Loader:
        warnings.filterwarnings("ignore", message="You are using a custom batch sampler")  # which returns all images
        return self.loader(self.tested)

    def loader(self, split: SplitName) -> Loader:
        """This device's share of a split, in order and without augmentation."""
        samples, in_blocks = len(self.split(split)), self.split(split).blocks is not None
        batches = EvalBatches(samples=samples, batch_size=self.eval_batch_size, in_blocks=in_blocks, **self._share())
        return self._loader(split, batches, training=False)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment and normalize on the device, after reseeding torch for a training batch."""
        if not isinstance(batch, TrainBatch | EvalBatch):
            return batch
        prepare = self._prepare.to(batch.images.device)
        prepare.image_size = self.train_size(batch.epoch) if isinstance(batch, TrainBatch) else self.image_size
        if isinstance(batch, TrainBatch):
            is_first, self.is_first = self.is_first, False
            if self.trainer is not None and is_first and (batch.epoch, batch.step) != self.position():
                position = f"epoch {batch.epoch}, step {batch.step} instead of {self.position()}"
                raise RuntimeError(f"the loader was started too early: it returned the batch of {position}")
            reseed(stable_seed(self.seed, batch.epoch, batch.step, batch.micro), batch.images.device)
            known = {"num_classes": self.num_classes, "cropped": self._splits["train"].files is not None}
            images, targets = self.augment(batch.images, batch.targets, prepare=prepare, epoch=batch.epoch, **known)
            batch = batch._replace(images=images, targets=targets)
        else:
            batch = batch._replace(images=prepare(batch.images))
        batch = (batch.images, batch.targets) if self.tuples else batch
        # Lightning converted the batch to the Trainer's precision while it was uint8
        return batch if self.trainer is None else self.trainer.precision_plugin.convert_input(batch)

    def _share(self) -> dict[str, int]:
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return {"rank": rank, "world_size": world_size}

    def _loader(self, name: SplitName, batches: EpochBatches | EvalBatches, *, training: bool) -> Loader:
        split = self._splits[name]
        if split.files is None:
            dataset: MemoryDataset | FilesDataset = MemoryDataset(split, training=training)
        else:
            names = ("image_size", "augment", "interpolation", "mean", "seed", "scaled_decoding", "train_size")
            dataset = FilesDataset(split, training=training, **{name: getattr(self, name) for name in names})
        dataset = dataset if training or self.view is None else self.view(dataset)
        workers = self.num_workers
        if workers is None and split.files is None:
            # sending a batch between processes costs more than selecting it
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            workers = 0
        if workers is None:
            devices = 1 if self.trainer is None else self.trainer.num_devices
            workers = min(MOST_WORKERS, max(1, environment.cores() // devices))
        pin = self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator)
        return build_loader(dataset, batches, workers=workers, keep=name != "test", pin=pin, seed=self.seed)
