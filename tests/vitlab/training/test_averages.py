"""Averages step by step next to timm's and torchvision's, through resumes, and their scores next to the raw ones."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from omegaconf import OmegaConf
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, distributed, nn
from torch.distributed import FileStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.optim.swa_utils import AveragedModel

from conftest import SRC
from forked_ranks import RANKS
from vitlab.config.schema import Node
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.digits import digits
from vitlab.jobs.compose import CONF
from vitlab.models.vit import VisionTransformer
from vitlab.storage.safe_load import load_checkpoint
from vitlab.training import build, schedules
from vitlab.training.averages import ScheduleFreeWeightAveraging, WeightAveraging
from vitlab.training.classifier import Classifier
from vitlab.training.schedule_free import ScheduleFreeAdamW

MakeTrainer = Callable[..., Trainer]
Average = Callable[[int, nn.Module], nn.Module]  # optimizer steps done, network -> its average
BATCH, PER_EPOCH, EPOCHS = 20, 5, 3
PARTS = ("state_dict", "current_model_state")


def classifier(optimizer: Callable[..., Any] = partial(torch.optim.SGD, lr=0.5)) -> Classifier:  # noqa: B008
    torch.manual_seed(0)
    network = VisionTransformer(image_size=8, patch_size=4, dim=16, depth=1, heads=2, num_classes=10, in_channels=1)
    return Classifier(network, num_classes=10, optimizer=optimizer, schedule=schedules.constant, batch_size=BATCH)


def data() -> DataModule:
    module = DataModule(
        source=digits, max_train_samples=BATCH * PER_EPOCH, batch_size=BATCH, augment=Augment(), image_size=8, seed=0
    )
    module.setup()
    return module


@pytest.fixture
def _restored() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.NOTSET)


class Save(Callback):
    def __init__(self, file: Path) -> None:
        self.file = file

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.file)


class Compare(Callback):
    """Compares an average with a reference after each optimizer step."""

    def __init__(self, average: WeightAveraging, reference: Average) -> None:
        self.average, self.reference, self.steps = average, reference, 0
        self.moved: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        assert isinstance(pl_module, Classifier)
        expected = self.reference(self.steps, pl_module.network)
        averages = self.average._average_model
        for name, theirs in expected.named_parameters(prefix="network"):
            torch.testing.assert_close(averages[name], theirs, rtol=1e-6, atol=1e-7, msg=f"{name} at {self.steps}")
        weight, mean = pl_module.get_parameter("network.head.weight"), averages["network.head.weight"]
        self.moved.append(float(torch.dist(weight.detach(), mean)))


def compare(
    make_trainer: MakeTrainer,
    average: WeightAveraging,
    reference: Average,
    module: Classifier | None = None,
    **trainer: Any,
) -> list[float]:
    check = Compare(average, reference)
    options = {"max_epochs": EPOCHS, "limit_val_batches": 0} | trainer
    make_trainer(callbacks=[average, check], **options).fit(module or classifier(), data())
    assert check.steps == EPOCHS * PER_EPOCH
    return check.moved


@pytest.mark.parametrize(
    ("start", "parts", "warmup"),
    [
        (0, 1, {}),
        (6, 2, {"use_warmup": True}),
        (0, 1, {"use_warmup": True, "warmup_gamma": 3.0, "warmup_power": 0.9}),
    ],
)
def test_the_average_is_timm_s_in_each_step(
    start: int, parts: int, warmup: dict[str, Any], make_trainer: MakeTrainer
) -> None:
    ema: list[ModelEmaV3] = []

    def reference(step: int, network: nn.Module) -> nn.Module:
        if not ema:
            ema.append(ModelEmaV3(network, decay=0.8, update_after_step=start, **warmup))
        ema[0].update(network, step=step)  # as timm's train.py counts
        return ema[0].get_submodule("module")

    average = WeightAveraging(decay=0.8, start_step=start, **warmup)
    moved = compare(make_trainer, average, reference, accumulate_grad_batches=parts)
    assert moved[: start + 1] == [0.0] * (start + 1), "a copy, and in the first update too"
    assert min(moved[start + 1 :]) > 1e-4


class ExponentialMovingAverage(AveragedModel):
    """torchvision's (references/classification/utils.py)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        def ema_avg(avg: Tensor, param: Tensor, _: Any) -> Tensor:
            return decay * avg + (1 - decay) * param

        super().__init__(model, torch.device("cpu"), ema_avg, use_buffers=True)


@pytest.mark.parametrize("decay", [0.99, 0.5])
def test_the_average_is_torchvision_s_in_each_step(decay: float, make_trainer: MakeTrainer) -> None:
    """references/classification/train.py: every 3 steps of an epoch, copies in the warm-up, the decay adjusted."""
    epochs, every, warmup = EPOCHS, 3, 1
    alpha = min(1.0, (1 - decay) * BATCH * every / epochs)
    ema: list[ExponentialMovingAverage] = []

    def reference(step: int, network: nn.Module) -> nn.Module:
        if not ema:
            ema.append(ExponentialMovingAverage(network, 1 - alpha))
        epoch, i = divmod(step - 1, PER_EPOCH)
        if i % every == 0:
            ema[0].update_parameters(network)
            if epoch < warmup:
                ema[0].n_averaged.fill_(0)
        return ema[0].get_submodule("module")

    options: dict[str, Any] = {
        "every_n_steps": every,
        "per_epoch": True,
        "start_fraction": warmup / epochs,
        "adjust": True,
    }
    average = WeightAveraging(decay=decay, **options)
    compare(make_trainer, average, reference)
    assert average.decay_of(1) == pytest.approx(1 - alpha)


@pytest.mark.parametrize("every", [1, 4])
def test_without_a_decay_the_average_is_the_mean_of_the_last_steps(every: int, make_trainer: MakeTrainer) -> None:
    kept: list[nn.Module] = []

    def reference(step: int, network: nn.Module) -> nn.Module:
        if (step - 1) % every == 0:
            kept[:] = [*(kept if step - every > 6 else []), deepcopy(network)]  # in 6 steps copies of the weights
        mean = deepcopy(kept[0])
        with torch.no_grad():
            for parameter, *others in zip(*(each.parameters() for each in (mean, *kept)), strict=True):
                parameter.copy_(torch.stack(others).mean(0))
        return mean

    compare(make_trainer, WeightAveraging(decay=None, start_fraction=0.4, every_n_steps=every), reference)
    assert len(kept) == {1: 9, 4: 2}[every]


def test_a_schedule_free_average_is_the_mean_of_the_optimizer_s_steps(make_trainer: MakeTrainer) -> None:
    built: list[ScheduleFreeAdamW] = []
    means: dict[str, Tensor] = {}

    def make(parameters: Any) -> ScheduleFreeAdamW:
        built.append(ScheduleFreeAdamW(parameters, lr=0.01, weight_decay=0.05))
        return built[0]

    def reference(step: int, network: nn.Module) -> nn.Module:
        copy = deepcopy(network)
        for (name, parameter), mean in zip(network.named_parameters(), copy.parameters(), strict=True):
            z = built[0].state[parameter]["z"]
            means[name] = z.clone() if name not in means else means[name] + (z - means[name]) / step
            mean.data.copy_(means[name])
        return copy

    moved = compare(make_trainer, ScheduleFreeWeightAveraging(), reference, classifier(make))
    assert min(moved[1:]) > 1e-4


def test_a_schedule_free_average_has_the_statistics_of_the_network(make_trainer: MakeTrainer) -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    optimizer = partial(ScheduleFreeAdamW, lr=0.01)
    module = Classifier(network, num_classes=10, optimizer=optimizer, schedule=schedules.constant)

    class Watch(Callback):
        steps = 0

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            for name, statistic in network.named_buffers(prefix="network"):
                assert torch.equal(average._average_model[name], statistic), name
            self.steps += 1

    average, watch = ScheduleFreeWeightAveraging(), Watch()
    make_trainer(callbacks=[average, watch], max_epochs=1, limit_val_batches=0).fit(module, data())
    assert watch.steps == PER_EPOCH


def test_an_average_that_is_loaded_after_the_start_continues(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FSDP2 loads it."""
    ends = []
    for start, epochs in ((None, 2), (None, 1), (tmp_path / "1.ckpt", 2)):
        callbacks = [WeightAveraging(decay=0.9), Save(tmp_path / f"{epochs}.ckpt")]
        monkeypatch.setattr(SingleDeviceStrategy, "restore_checkpoint_after_setup", start is not None)
        trainer = make_trainer(callbacks=callbacks, max_epochs=epochs, limit_val_batches=0)
        trainer.fit(classifier(), data(), ckpt_path=start, weights_only=True)
        ends.append(load_checkpoint(tmp_path / f"{epochs}.ckpt"))
    for part in PARTS:
        assert all(torch.equal(value, ends[2][part][name]) for name, value in ends[0][part].items())
    assert ends[0]["averaging_state"] == ends[2]["averaging_state"]


def test_an_adjustment_to_an_unknown_batch_size_is_refused(make_trainer: MakeTrainer) -> None:
    module = classifier()
    module.batch_size = None
    with pytest.raises(ValueError, match=r"callbacks\.ema\.adjust=true needs the batch_size"):
        make_trainer(callbacks=[WeightAveraging(adjust=True)], max_epochs=1).fit(module, data())
    make_trainer(callbacks=[WeightAveraging()], max_epochs=1).fit(module, data())


def test_a_schedule_free_run_resumes_bit_for_bit(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    states: list[dict[str, Tensor]] = []
    for stops in ([3], [1, 3]):
        start: Path | None = None
        for epochs in stops:
            module = classifier(partial(ScheduleFreeAdamW, lr=0.01))
            file = tmp_path / f"{len(states)}-{epochs}.ckpt"
            callbacks = [ScheduleFreeWeightAveraging(), Save(file)]
            trainer = make_trainer(callbacks=callbacks, max_epochs=epochs, limit_val_batches=0)
            trainer.fit(module, data(), ckpt_path=start, weights_only=True)
            start = file
        assert start is not None
        states.append(load_checkpoint(start)["current_model_state"] | module.state_dict(prefix="average."))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert torch.dist(states[0]["network.head.weight"], states[0]["average.network.head.weight"]) > 1e-4


def test_the_average_of_weights_of_16_bits_is_kept_in_float32(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """An average of 16 bits wouldn't move: one of 1000 parts of a step is below their resolution."""
    kept: list[nn.Module] = []

    def reference(step: int, network: nn.Module) -> nn.Module:
        kept[:] = kept or [deepcopy(network).float()]
        for mean, now in zip(kept[0].parameters(), network.parameters(), strict=True):
            mean.data.lerp_(now.data.float(), 1 - 0.999 if step > 1 else 1.0)
        return kept[0]

    average, file, stops = WeightAveraging(decay=0.999), tmp_path / "end.ckpt", [2, EPOCHS]
    moved = compare(make_trainer, average, reference, precision="bf16-true", limit_val_batches=1)
    assert min(moved[1:]) > 1e-4
    assert len({*moved}) == EPOCHS * PER_EPOCH, "it moves in each step"
    states = []
    for start, epochs in ((None, EPOCHS), (None, stops[0]), (file, stops[1])):
        options: dict[str, Any] = {"max_epochs": epochs, "precision": "bf16-true", "limit_val_batches": 0}
        trainer = make_trainer(callbacks=[WeightAveraging(decay=0.999), Save(file)], **options)
        trainer.fit(classifier(), data(), ckpt_path=start, weights_only=True)
        states.append(load_checkpoint(file))
    for part, dtype in (("state_dict", torch.float32), ("current_model_state", torch.bfloat16)):
        assert {value.dtype for value in states[0][part].values()} == {dtype}
        assert all(torch.equal(value, states[2][part][name]) for name, value in states[0][part].items())


def test_after_training_the_module_has_the_averages_and_the_checkpoint_both(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    module = classifier()
    average = WeightAveraging(decay=0.9)

    make_trainer(callbacks=[average, Save(tmp_path / "end.ckpt")], max_epochs=2, limit_val_batches=0).fit(
        module, data()
    )
    content = load_checkpoint(tmp_path / "end.ckpt")
    name = "network.head.weight"
    assert torch.equal(content["state_dict"][name], module.state_dict()[name])
    assert not torch.equal(content["current_model_state"][name], module.state_dict()[name])


def test_a_validation_scores_the_averages_and_training_continues_with_the_weights(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    plain, module, saved = classifier(), classifier(), tmp_path / "end.ckpt"
    raw = make_trainer(max_epochs=2)
    raw.fit(plain, data())
    trainer = make_trainer(max_epochs=2, callbacks=[WeightAveraging(decay=0.9), Save(saved)])
    trainer.fit(module, data())
    weights = load_checkpoint(saved)["current_model_state"]
    assert all(torch.equal(weights[name], value) for name, value in plain.state_dict().items())
    loss = float(trainer.callback_metrics["val/loss"])
    tester = make_trainer()
    tester.validate(module, data(), verbose=False)  # which has the averages
    assert loss == float(tester.callback_metrics["val/loss"]) != float(raw.callback_metrics["val/loss"])


def test_the_first_rank_saves_an_average_in_shards_completely_and_others_nothing(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed.init_process_group("gloo", store=FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        average, trainer, saved = WeightAveraging(), make_trainer(), list[Any]()
        shards = distribute_tensor(torch.arange(3.0), init_device_mesh("cpu", (1,)), [Shard(0)])
        average._average_model, average._updates = {"weight": shards}, 3
        for is_first in (True, False):
            monkeypatch.setattr(Trainer, "is_global_zero", is_first)
            checkpoint: dict[str, Any] = {"state_dict": {}}
            average.on_save_checkpoint(trainer, classifier(), checkpoint)
            saved.append(checkpoint["state_dict"]["weight"])
    finally:
        distributed.destroy_process_group()
    assert [type(each) for each in saved] == [Tensor, Tensor]
    assert [each.tolist() for each in saved] == [[0.0, 1.0, 2.0], []]


def test_the_defaults_are_those_of_conf() -> None:
    configured, default = instantiate(OmegaConf.load(CONF / "callbacks" / "ema.yaml").ema), WeightAveraging()
    assert vars(configured) == vars(default)


@pytest.mark.usefixtures("_restored")
def test_a_run_has_the_scores_of_the_averages_and_of_the_weights_that_were_averaged(
    configure: Callable[..., Node], train_function: Callable[..., Node], tmp_path: Path
) -> None:
    small = ["model.dim=16", "model.depth=1", "model.heads=2", "trainer.accelerator=cpu", "logger=csv"]
    quick = ["trainer.enable_progress_bar=false", "trainer.max_steps=12", "schedule=constant", "optimizer.lr=1e-2"]
    config = configure("callbacks=ema", "callbacks.ema.decay=0.95", *small, *quick)
    (tmp_path / "run").mkdir()
    results = train_function(**config)
    assert results["test/count"] == results["raw/count"] == 360
    assert results["test/loss"] != results["raw/loss"]
    content = load_checkpoint(Path(results["checkpoint"]))
    for key, prefix in (("state_dict", "test"), ("current_model_state", "raw")):
        datamodule = build.build_data(config["data"])
        module = build.build_classifier(config["model"], datamodule, config["classifier"])
        module.load_state_dict(content[key])
        tester = build.build_trainer(config["trainer"], run_dir=tmp_path / "test")
        tester.test(module, datamodule, verbose=False)
        for score in ("acc", "loss"):
            assert float(tester.callback_metrics[f"test/{score}"]) == results[f"{prefix}/{score}"]
    assert "raw/acc" in (Path(config["run_dir"]) / "metrics.csv").read_text().splitlines()[0]
    assert build.raw_scores(tester, module, datamodule, without_averages(tmp_path / "plain.ckpt")) == {}


def without_averages(file: Path) -> Path:
    torch.save({"state_dict": {}}, file)
    return file


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"decay": 1.0}, "decay=1.0 must be"), ({"every_n_steps": 0}, "every_n_steps=0 must be at least 1")],
)
def test_settings_out_of_bounds_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightAveraging(**settings)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with an average by one process, and by two ranks with and without shards, complete and in two parts."""
    folder = tmp_path_factory.mktemp("ranks")
    sizes = ["model.dim=16", "model.depth=1", "model.heads=2", "batch_size=256", "trainer.accelerator=cpu"]
    quiet = ["report=false", "logger=csv", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
    settings = [*sizes, *quiet, "callbacks=ema", "callbacks.ema.decay=0.9"]
    ends = {epochs: f"trainer.max_epochs={epochs}" for epochs in (1, 2)}
    plain = ["degrees=0", "translate=0", "scale=[1,1]", "shear=0", "mixup=0"]  # the same images on any number of ranks
    fixed = [f"data.augment.{setting}" for setting in plain] + ["model.drop_path=0"]
    shared = [*settings, *fixed, "schedule=constant", "optimizer=sgd", "optimizer.fused=false", "optimizer.lr=0.1"]
    jobs: list[list[Any]] = [
        ["train", "one", 1, *shared, ends[2]],
        ["train", "ddp", 2, "trainer=ddp", *shared, ends[2]],
        ["train", "fsdp", 2, "trainer=fsdp", *shared, ends[2]],
        ["train", "first", 2, "trainer=fsdp", *shared, ends[1]],
        ["train", "second", 2, "trainer=fsdp", *shared, ends[2], f"resume={folder}/first/checkpoints/last.ckpt"],
        ["train", "one-of-fsdp", 1, *shared, ends[2], f"resume={folder}/first/checkpoints/last.ckpt"],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SRC)}
    subprocess.run([sys.executable, "-c", RANKS, json.dumps(jobs)], cwd=folder, env=environment, check=True)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("name", ["ddp", "fsdp", "one-of-fsdp"])
def test_ranks_average_as_one_process_does_also_in_shards(ranks: Path, name: str) -> None:
    one, other = (load_checkpoint(ranks / run / "checkpoints/last.ckpt") for run in ("one", name))
    for part in PARTS:
        assert one[part].keys() == other[part].keys()
        for key, value in one[part].items():
            torch.testing.assert_close(other[part][key], value, rtol=0, atol=1e-6)
    assert one["averaging_state"] == other["averaging_state"]
    scores, others = (json.loads((ranks / run / "results.json").read_text()) for run in ("one", name))
    for score in ("val/loss", "test/loss", "raw/loss"):
        assert others[score] == pytest.approx(scores[score], rel=1e-5), score
    assert scores["test/loss"] != pytest.approx(scores["raw/loss"], rel=1e-3)


@pytest.mark.long
def test_a_sharded_average_resumes_bit_for_bit(ranks: Path) -> None:
    one, other = (load_checkpoint(ranks / run / "checkpoints/last.ckpt") for run in ("fsdp", "second"))
    for part in PARTS:
        assert all(torch.equal(value, other[part][key]) for key, value in one[part].items())
    assert not torch.equal(*(one[part]["network.head.weight"] for part in PARTS))


def test_a_training_that_has_no_average_yet_ends_without_one() -> None:
    WeightAveraging(decay=0.9).teardown(None, None, "fit")  # type: ignore[arg-type]
