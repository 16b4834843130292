"""The data module, with real Lightning runs of a tiny model on real digits."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from sklearn.datasets import load_digits

from conftest import SRC
from forked_ranks import RANKS
from vitlab.config.schema import Node
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import EvalBatch, TrainBatch
from vitlab.data.rows import Rows
from vitlab.data.sampler import EpochBatches, reseed
from vitlab.data.sets.digits import digits
from vitlab.data.sets.fake import fake
from vitlab.data.sets.image_folder import image_folder
from vitlab.data.source import IMAGENET_MEAN, IMAGENET_STD, Source, Split
from vitlab.storage.safe_load import load_checkpoint

# Lightning 2.6.6 with torch 2.15
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")


def datamodule(source: Callable[[], Source] = digits, **knobs: Any) -> DataModule:
    knobs = {"augment": Augment(), "image_size": 8, "batch_size": 100, "seed": 0, **knobs}
    return DataModule(source=source, **knobs)


class Tiny(LightningModule):
    """A linear model with dropout that remembers which images it was given, by their pixels."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.3), torch.nn.Linear(size, 10))
        self.seen: dict[int, list[torch.Tensor]] = {}  # by epoch
        self.batches: list[TrainBatch] = []
        self.evaluated = 0

    def training_step(self, batch: TrainBatch, index: int) -> torch.Tensor:
        self.seen.setdefault(batch.epoch, []).extend(batch.images.flatten(1))
        self.batches.append(batch)
        loss = torch.nn.functional.cross_entropy(self.net(batch.images), batch.targets, reduction="sum")
        return loss / batch.count

    def validation_step(self, batch: EvalBatch, index: int) -> None:
        self.evaluated += len(batch.targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **knobs: Any) -> Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "default_root_dir": str(folder),
    }
    return Trainer(**{**defaults, **knobs})


def checksums(images: list[torch.Tensor]) -> list[tuple[float, ...]]:
    return sorted(tuple(image.tolist()) for image in images)


def test_each_training_image_is_drawn_exactly_once_an_epoch(tmp_path: Path) -> None:
    data, model = datamodule(), Tiny()
    trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2).fit(model, datamodule=data)
    every = list(data._prepare(data._splits["train"].images).flatten(1))
    assert len(every) == data.samples["train"]
    assert checksums(model.seen[0]) == checksums(model.seen[1]) == checksums(every)
    assert not all(torch.equal(a, b) for a, b in zip(*model.seen.values(), strict=True)), (
        "epochs have orders of their own"
    )
    assert model.evaluated == 2 * data.samples["val"]
    assert [(batch.epoch, batch.step, batch.micro) for batch in model.batches] == [
        (epoch, step, micro) for epoch in range(2) for step in range(data.steps_per_epoch) for micro in range(2)
    ]


def test_validation_is_cut_from_train_alone_and_stratified() -> None:
    data = datamodule(val_fraction=0.2)
    data.setup()
    source = digits()
    assert source.train.images is not None
    assert data.samples == {"train": 1149, "val": 288, "test": 360}
    cut = torch.cat([data._splits[name].images.flatten(1) for name in ("train", "val")])  # type: ignore[union-attr]
    assert checksums(list(cut)) == checksums(list(source.train.images.flatten(1)))
    counts = data._splits["val"].labels.bincount()
    assert counts.max() - counts.min() <= 2
    assert (data.num_classes, data.channels, data.source.classes) == (10, 1, source.classes)


def test_nothing_is_held_out_at_a_fraction_of_0() -> None:
    data = datamodule(val_fraction=0)
    data.setup()
    assert data.samples == {"train": 1437, "val": 0, "test": 360}
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match=r"data\.val_fraction=0 leaves no validation split; set it above 0"):
        data.split("val")


def test_repeats_with_other_seeds_share_their_validation_images() -> None:
    one, two, other = datamodule(seed=1), datamodule(seed=2), datamodule(split_seed=1)
    for data in (one, two, other):
        data.setup()
    labels = [data._splits["val"].labels for data in (one, two, other)]
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0], labels[2])


def test_the_source_is_loaded_once() -> None:
    calls = []

    def source() -> Source:
        calls.append(1)
        return digits()

    data = datamodule(source)
    data.prepare_data()
    data.setup()
    data.setup("fit")
    data.setup("test")
    assert len(calls) == 1


def test_fewer_training_samples_leave_validation_and_test_complete() -> None:
    complete, part = datamodule(), datamodule(max_train_samples=200)
    complete.setup()
    part.setup()
    assert part.samples == {**complete.samples, "train": 200}
    assert part._splits["train"].labels.bincount().min() >= 19
    assert part.steps_per_epoch == 2


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"val_fraction": -0.1}, r"val_fraction=-0\.1 must be at least 0"),
        ({"val_fraction": 0.001}, r"data\.val_fraction=0\.001 can't split"),
        ({"max_train_samples": 5}, r"data\.max_train_samples=5 can't split"),
        ({"batch_size": 0}, r"^batch_size=0"),
        ({"eval_batch_size": 0}, r"eval_batch_size=0"),
        ({"num_workers": -1}, r"num_workers=-1"),
        ({"image_size": 0}, r"image_size=0"),
        ({"scaled_decoding": True}, r"data\.scaled_decoding=true is for JPEG files, and digits is in memory"),
        ({"source": lambda: fake(channels=4), "augment": Augment(auto_augment="randaugment")}, r"has 4"),
    ],
)
def test_a_knob_that_cannot_be_is_named(knobs: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        datamodule(**knobs).setup()


def test_properties_before_setup_say_what_to_call() -> None:
    with pytest.raises(RuntimeError, match=r"call setup\(\) first"):
        _ = datamodule().num_classes


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_any_split_can_be_read_unaugmented_and_in_order(split: Any) -> None:
    data = datamodule(augment=Augment(crop_padding=2, flip=True, mixup=1.0), eval_batch_size=64)
    data.setup()
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.loader(split)]
    assert all(isinstance(batch, EvalBatch) and len(batch.targets) <= 64 for batch in batches)
    assert torch.equal(torch.cat([batch.targets for batch in batches]), data._splits[split].labels)
    expected = data._prepare(data._splits[split].images)
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected)


def test_reseeding_gives_what_torchs_own_gives() -> None:
    torch.manual_seed(1234567890123)
    wanted = torch.rand(5)
    reseed(1234567890123, torch.device("cpu"))
    assert torch.equal(torch.rand(5), wanted)


def test_a_training_batch_reseeds_by_where_it_stands() -> None:
    data = datamodule(augment=Augment(crop_padding=2))
    data.setup()
    raw = next(iter(data.train_dataloader()))
    assert isinstance(raw, TrainBatch)

    def outcome(**changes: int) -> tuple[float, ...]:
        torch.manual_seed(99)
        batch = data.on_after_batch_transfer(raw._replace(**changes), 0)  # type: ignore[arg-type]
        return (*batch.images.flatten().tolist(), torch.rand(()).item())

    assert outcome() == outcome()
    others = [outcome(), outcome(epoch=1), outcome(step=1), outcome(micro=1)]
    assert len(set(others)) == 4
    data.seed = 1
    assert outcome() not in others


class Stop(Exception):
    """The interruption of the test below."""


class Interrupted(Tiny):
    """Saves and dies in mid-epoch."""

    def __init__(self, at_step: int, path: Path) -> None:
        super().__init__()
        self.at_step, self.path = at_step, path

    def on_train_batch_start(self, batch: TrainBatch, index: int) -> None:
        if self.global_step == self.at_step and batch.micro == 0:
            self.trainer.save_checkpoint(self.path)
            raise Stop


@pytest.mark.parametrize(
    ("accumulate", "at_step", "repeats", "others"),
    [
        (1, 5, 1, {"crop_padding": 1}),
        (1, 13, 3, {"crop": "inception", "auto_augment": "three_augment", "erasing_mode": "pixel"}),
        (2, 20, 3, {"crop": "simple", "auto_augment": "timm_randaugment", "mix_mode": "elem"}),
    ],
)
def test_an_interrupted_run_ends_with_the_very_same_weights(
    tmp_path: Path, at_step: int, accumulate: int, repeats: int, others: dict[str, Any]
) -> None:
    augment = Augment(mixup=0.5, erasing=0.5, **others)
    knobs: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": accumulate}

    def fresh() -> DataModule:
        torch.manual_seed(torch.seed())  # the state left by earlier code must not matter
        return datamodule(augment=augment, repeats=repeats)

    torch.manual_seed(0)
    complete, resumed = Tiny(), Tiny()
    dying = Interrupted(at_step, tmp_path / "dying.ckpt")
    dying.load_state_dict(complete.state_dict())
    data = fresh()
    trainer(tmp_path, **knobs).fit(complete, datamodule=data)
    assert data.steps_per_epoch == 13
    with pytest.raises(Stop):
        trainer(tmp_path, **knobs).fit(dying, datamodule=fresh())
    trainer(tmp_path, **knobs).fit(resumed, datamodule=fresh(), ckpt_path=str(dying.path))
    assert [(batch.epoch, batch.step) for batch in dying.batches + resumed.batches] == [
        (batch.epoch, batch.step) for batch in complete.batches
    ]
    for one, other in zip(complete.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_limited_batches_keep_epoch_and_step_true(tmp_path: Path) -> None:
    data, model = datamodule(), Tiny()
    trainer(tmp_path, max_epochs=2, limit_train_batches=3, limit_val_batches=0).fit(model, datamodule=data)
    assert data.steps_per_epoch == 3
    assert [(batch.epoch, batch.step) for batch in model.batches] == [
        (epoch, step) for epoch in range(2) for step in range(3)
    ]


@pytest.mark.parametrize(("share", "batches", "steps"), [(0.45, 11, 6), (0.4, 10, 5), (1.0, 26, 13)])
def test_a_share_of_the_batches_is_that_share_of_an_epoch(
    tmp_path: Path, share: float, batches: int, steps: int
) -> None:
    data, model = datamodule(), Tiny()
    knobs: dict[str, Any] = {"max_epochs": 2, "limit_val_batches": 0, "accumulate_grad_batches": 2}
    trainer(tmp_path, limit_train_batches=share, **knobs).fit(model, datamodule=data)
    assert (data.batches_per_epoch, data.steps_per_epoch) == (batches, steps)
    assert [(batch.epoch, batch.step, batch.micro) for batch in model.batches] == [
        (epoch, *divmod(number, 2)) for epoch in range(2) for number in range(batches)
    ]


class Blocks(Rows):
    """Rows in blocks of 50."""

    @property
    def blocks(self) -> torch.Tensor:
        return self.chosen // 50

    def read(self, row: int) -> bytes:
        raise NotImplementedError

    def content(self) -> bytes:
        return b""


@pytest.mark.parametrize(("buffer", "least", "most"), [(100, 1, 3), (600, 4, 6), (None, 7, 12)])
def test_a_step_mixes_as_many_blocks_of_rows_as_the_shuffle_buffer_has_room_for(
    buffer: int | None, least: int, most: int
) -> None:
    labels = torch.arange(600) % 10
    train, test = (Split(None, labels[:n], Blocks("set", torch.arange(n))) for n in (600, 200))
    facts = (tuple("0123456789"), 3, IMAGENET_MEAN, IMAGENET_STD, None)
    source = Source("set", *facts, train, test, shuffle_buffer=buffer)
    data = datamodule(lambda: source, batch_size=20, num_workers=0)
    data.setup()
    blocks = data.split("train").blocks
    assert blocks is not None
    plans = cast(EpochBatches, data.train_dataloader().batch_sampler)
    used = [len(set(blocks[plan.indices].tolist())) for plan in plans]  # of 12, of 50 rows each
    assert len(used) == data.steps_per_epoch
    assert least <= max(used) <= most


def test_overfit_batches_takes_the_same_images_in_every_epoch(tmp_path: Path) -> None:
    model = Tiny()
    trainer(tmp_path, max_epochs=3, overfit_batches=2).fit(model, datamodule=datamodule())
    first, second, third = (
        [sorted(batch.images.mean(dim=(1, 2, 3)).tolist()) for batch in model.batches if batch.epoch == epoch]
        for epoch in range(3)
    )
    assert len(first) == 2
    assert first == second == third


def test_batches_arrive_in_the_trainers_precision(tmp_path: Path) -> None:
    model = Tiny()
    trainer(tmp_path, max_steps=1, precision="64-true", limit_val_batches=1).fit(model, datamodule=datamodule())
    assert model.batches[0].images.dtype == torch.float64
    assert model.batches[0].targets.dtype == torch.int64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits 0, 1 and 2 as an image folder, 20 each."""
    root = tmp_path_factory.mktemp("folder")
    data = load_digits(n_class=3)
    for label in range(3):
        (root / str(label)).mkdir()
        for number, image in enumerate(data.images[data.target == label][:20]):
            pixels = Image.fromarray((image * 15).astype("uint8"))
            pixels.resize((24, 20)).save(root / str(label) / f"{number}.png")
    return root


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(("auto_augment", "repeats"), [("trivialaugment", 1), ("timm_randaugment", 3)])
def test_an_image_folder_trains_the_same_with_and_without_workers(
    tmp_path: Path, folder: Path, auto_augment: Any, repeats: int
) -> None:
    losses = []
    for workers in (0, 2):
        data = datamodule(
            lambda: image_folder(data_dir=str(folder)),
            augment=Augment(flip=True, erasing=0.5, auto_augment=auto_augment),
            repeats=repeats,
            image_size=(16, 12),
            batch_size=10,
            num_workers=workers,
        )
        torch.manual_seed(0)
        model = Tiny(size=3 * 16 * 12)
        trainer(tmp_path, max_epochs=2).fit(model, datamodule=data)
        assert model.batches[0].images.shape == (9, 3, 16, 12)
        losses.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*losses)


def test_padding_is_refused_for_image_folders(folder: Path) -> None:
    data = datamodule(lambda: image_folder(data_dir=str(folder)), augment=Augment(crop_padding=2))
    with pytest.raises(ValueError, match=r"data\.augment\.crop_padding=2 is for data sets in memory"):
        data.setup()


def test_workers_default_to_none_in_memory_and_to_the_cores_for_files(folder: Path) -> None:
    data = datamodule()
    data.setup()
    assert data.train_dataloader().num_workers == 0
    data = datamodule(lambda: image_folder(data_dir=str(folder)), batch_size=8)
    data.setup()
    assert 1 <= data.train_dataloader().num_workers <= 16


def test_images_are_prepared_as_asked_for_or_as_the_source_is() -> None:
    plain, asked = datamodule(), datamodule(mean=(0.2, 0.4, 0.6), std=(0.5,), interpolation="bilinear")
    for each in (plain, asked):
        each.setup()
    assert plain.preprocessing()["mean"] == list(plain.source.mean)
    assert asked.preprocessing() == {
        "mean": [pytest.approx(0.4)],  # of three, for grey images
        "std": [0.5],
        "interpolation": "bilinear",
        "crop_fraction": None,  # images in memory aren't cropped
    }
    batch = next(iter(asked.loader("val")))
    prepared = asked.on_after_batch_transfer(batch, 0).images
    torch.testing.assert_close(prepared, (batch.images / 255 - 0.4) / 0.5)


def test_colors_for_another_number_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.mean=\[0\.1, 0\.2\] is for 2 channels, and fake has 3"):
        datamodule(fake, mean=(0.1, 0.2)).setup()


SIZES = {0: 8, 1: 12, 2: 16}


def test_training_images_have_the_size_of_their_epoch_and_others_that_of_the_model(tmp_path: Path) -> None:
    class Sizes(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(8), self.net)
            self.sizes: list[tuple[int, int]] = []

        def training_step(self, batch: TrainBatch, index: int) -> torch.Tensor:
            self.sizes.append((batch.epoch, *batch.images.shape[3:]))
            assert batch.images.shape[2] == batch.images.shape[3]
            return super().training_step(batch, index)

        def validation_step(self, batch: EvalBatch, index: int) -> None:
            assert batch.images.shape[2:] == (20, 20)

    data, model = datamodule(image_size=20, size_schedule={**SIZES, 1: 12}, batch_size=500), Sizes()
    trainer(tmp_path, max_epochs=4).fit(model, datamodule=data)
    assert sorted(set(model.sizes)) == [(0, 8), (1, 12), (2, 16), (3, 16)]
    assert data.train_sizes == {(8, 8), (12, 12), (16, 16)}
    assert datamodule(size_schedule={3: 12}).train_sizes == {(8, 8), (12, 12)}


@pytest.mark.parametrize("crop", ["inception", "simple", "none"])
@pytest.mark.parametrize("workers", [0, 1])
def test_files_are_cropped_at_the_size_of_their_epoch(drawn: Path, crop: Any, workers: int) -> None:
    source = partial(image_folder, data_dir=str(drawn))
    options: dict[str, Any] = {"augment": Augment(crop=crop), "batch_size": 4, "num_workers": workers}
    data = datamodule(source, image_size=16, size_schedule=SIZES, **options)
    plain = datamodule(source, image_size=12, **options)
    for module in (data, plain):
        module.setup()
        module.set_epoch(1)
    ours, theirs = (next(iter(module.train_dataloader())) for module in (data, plain))
    assert torch.equal(ours.images, theirs.images)
    assert ours.images.shape[2:] == (12, 12)
    evaluated: Any = next(iter(data.val_dataloader()))
    assert evaluated.images.shape[2:] == (16, 16)


SIZED = [
    *("model.dim=16", "model.depth=1", "model.heads=2", "model.pos_embed=learned", "trainer.accelerator=cpu"),
    *("image_size=16", "model.patch_size=4", "data.size_schedule={0: 8, 1: 12, 2: 16}", "data.max_train_samples=100"),
    *("batch_size=20", "trainer.max_epochs=3", "logger=csv", "report=false", "trainer.enable_progress_bar=false"),
]


@pytest.fixture
def sized(configured: Callable[..., Node], train_function: Callable[..., Node]) -> Path:
    """A run with a size for each epoch of five steps, and its checkpoints of some steps."""
    config = configured(*SIZED, "callbacks.last.keep_every_n_train_steps=1")
    if not (folder := Path(config["run_dir"])).is_dir():
        folder.mkdir()
        train_function(**config)
    return folder


@pytest.mark.parametrize("step", [7, 10])
def test_a_run_resumes_bit_for_bit_within_a_phase_and_at_its_edge(
    sized: Path, configure: Callable[..., Node], train_function: Callable[..., Node], tmp_path: Path, step: int
) -> None:
    (tmp_path / "run").mkdir()
    train_function(**configure(*SIZED, f"resume={sized}/checkpoints/step-{step:06d}.ckpt"))
    ends = [load_checkpoint(run / "checkpoints/last.ckpt") for run in (sized, tmp_path / "run")]
    assert [end["global_step"] for end in ends] == [15, 15]
    assert all(torch.equal(value, ends[1]["state_dict"][name]) for name, value in ends[0]["state_dict"].items())


@pytest.mark.long
def test_two_ranks_train_on_the_sizes_of_one_process_also_in_shards_and_compiled(tmp_path: Path) -> None:
    plain = ["degrees=0", "translate=0", "scale=[1,1]", "shear=0", "mixup=0"]
    fixed = [f"data.augment.{setting}" for setting in plain] + ["model.drop_path=0", "schedule=constant"]
    shared = [*SIZED, *fixed, "optimizer=sgd", "optimizer.fused=false", "optimizer.lr=0.1"]
    jobs: list[list[Any]] = [["train", "one", 1, *shared], ["train", "compiled", 1, *shared, "compile=true"]]
    jobs += [["train", name, 2, *shared, f"trainer={name}"] for name in ("ddp", "fsdp")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SRC)}
    subprocess.run([sys.executable, "-c", RANKS, json.dumps(jobs)], cwd=tmp_path, env=environment, check=True)
    one, *others = (load_checkpoint(tmp_path / str(job[1]) / "checkpoints/last.ckpt")["state_dict"] for job in jobs)
    for other in others:
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(("labels", "refused"), [([0, 0, 0, 0], True), ([0, 1, 0, 1], False)])
def test_one_class_to_train_on_is_refused_and_two_are_enough(labels: list[int], refused: bool) -> None:
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    split, test = Split(images, torch.tensor(labels)), Split(images[:3], torch.arange(3))
    source = Source("tiny", ("a", "b", "c"), 1, (0.5,), (0.5,), 8, split, test)
    expected = pytest.raises(ValueError, match="tiny has the one class 'a' to train on") if refused else nullcontext()
    with expected:
        datamodule(lambda: source, batch_size=2, val_fraction=0.0).setup()
