"""A step whose loss or gradient isn't finite changes nothing, is explained, and ends the run or is skipped."""

import csv
import itertools
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from conftest import Configure
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.digits import digits
from vitlab.models.vit import VisionTransformer
from vitlab.runs.metrics_file import MetricsFile
from vitlab.training import schedules
from vitlab.training.checkpoint_state import random_state
from vitlab.training.classifier import Classifier
from vitlab.training.nonfinite import NonFinite, NonFiniteError, first_nonfinite

MakeTrainer = Callable[..., Trainer]
OPTIMIZERS = sorted(file.stem for file in (Path(__file__).parents[3] / "conf" / "optimizer").glob("*.yaml"))


def data() -> DataModule:
    """101 images in 4 steps."""
    augment = Augment(mixup=0.8)
    return DataModule(source=digits, max_train_samples=101, batch_size=30, augment=augment, image_size=8, seed=0)


def classifier(make: Any = None) -> Classifier:
    torch.manual_seed(0)
    network = VisionTransformer(
        image_size=8, patch_size=4, dim=16, depth=2, heads=2, num_classes=10, in_channels=1, dropout=0.2, drop_path=0.2
    )
    make = make or partial(torch.optim.AdamW, lr=1e-2, fused=True)
    return Classifier(network, num_classes=10, optimizer=make, schedule=schedules.constant)


class Poison(Callback):
    """Make a gradient infinite, or the loss alone, in these steps (from 0); copy all state before each step."""

    def __init__(self, *steps: int, loss: bool = False) -> None:
        self.steps, self.loss, self.states = steps, loss, dict[int, dict[str, Any]]()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.states.setdefault(trainer.global_step, state(trainer, pl_module))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self.loss and trainer.global_step in self.steps:
            loss.data.fill_(math.inf)  # without changing its gradient

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.loss and trainer.global_step in self.steps:
            gradient = pl_module.get_parameter("network.blocks.0.mlp.fc1.bias").grad
            assert gradient is not None
            gradient[3] = math.inf


def state(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Copies of the weights and of the optimizer's state."""
    copies = {f"weight {k}": v.clone() for k, v in module.network.state_dict().items()}  # type: ignore[union-attr]
    for index, kept in trainer.optimizers[0].state_dict()["state"].items():
        copies |= {f"{index} {k}": v.clone() if isinstance(v, Tensor) else v for k, v in kept.items()}
    return copies


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(v, two[k]) if isinstance(v, Tensor) else v == two[k] for k, v in one.items()
    )


def fit(make: MakeTrainer, folder: Path, module: Classifier, *callbacks: Callback, **knobs: Any) -> Trainer:
    resumed = knobs.pop("ckpt_path", None)
    given: dict[str, Any] = {"max_epochs": 2, "log_every_n_steps": 1, "gradient_clip_val": 1.0, **knobs}
    logger = [MetricsFile(folder=str(folder))]
    trainer = make(logger=logger, callbacks=list(callbacks), limit_val_batches=0, default_root_dir=str(folder), **given)
    trainer.fit(module, data(), ckpt_path=resumed, weights_only=True)
    return trainer


def skipped(folder: Path) -> list[tuple[int, float]]:
    with (folder / "metrics.csv").open(newline="") as lines:
        rows = [(int(row["step"]), row["train/skipped_steps"]) for row in csv.DictReader(lines)]
    return [(step, float(count)) for step, count in rows if count]


# ------------------------------------------------------------------------------------------------------------ stop


@pytest.mark.parametrize(
    ("clip", "loss", "accumulated"),
    [
        ({}, False, 1),
        ({}, True, 3),
        ({"gradient_clip_val": None}, False, 3),
        ({"gradient_clip_algorithm": "value"}, True, 1),
    ],
    ids=str,
)
def test_the_run_stops_before_the_optimizer_moves(
    clip: dict[str, Any], loss: bool, accumulated: int, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    module, poison = classifier(), Poison(5, loss=loss)
    with pytest.raises(NonFiniteError) as error:
        fit(make_trainer, tmp_path, module, poison, NonFinite(), accumulate_grad_batches=accumulated, **clip)
    reported = "loss inf, gradient norm 0" if loss else "gradient norm inf"
    for part in (
        "step 6 (epoch 2): loss ",
        reported,
        "learning rate 0.01",
        "the forward pass is finite: a gradient is",
    ):
        assert part in str(error.value)
    weights = {f"weight {k}": v for k, v in module.network.state_dict().items()}
    assert same(weights, {k: v for k, v in poison.states[5].items() if k.startswith("weight")})


class Break(Callback):
    """Before step 3, let a module overflow for the images of that step, or damage a weight."""

    def __init__(self, part: str, weight: bool) -> None:
        self.part, self.weight = part, weight

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == 2:
            with torch.no_grad():
                tensor = pl_module.get_parameter(f"network.{self.part}")
                tensor.fill_(3e38) if not self.weight else tensor.view(-1)[0].fill_(math.nan)


@pytest.mark.parametrize(
    ("part", "weight", "reported"),
    [
        ("blocks.1.mlp.fc2.bias", False, "the first output that isn't finite is that of blocks.1"),
        ("blocks.0.norm2.weight", False, "the first output that isn't finite is that of blocks.0.norm2"),
        ("blocks.0.attn.qkv.weight", True, "the weights blocks.0.attn.qkv.weight aren't finite"),
    ],
)
def test_the_first_module_whose_output_is_not_finite_is_named(
    part: str, weight: bool, reported: str, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    with pytest.raises(NonFiniteError, match=reported):
        fit(make_trainer, tmp_path, classifier(), Break(part, weight), NonFinite())


def test_looking_for_the_module_changes_no_random_number(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    module, datamodule = classifier(), data()
    datamodule.setup()
    batch = datamodule.on_after_batch_transfer(next(iter(datamodule.train_dataloader())), 0)
    module._trainer = make_trainer()
    before = torch.get_rng_state()
    assert "the forward pass is finite" in first_nonfinite(module, batch, random_state(torch.device("cpu")))
    assert torch.equal(torch.get_rng_state(), before)
    broken = batch._replace(images=batch.images.index_fill(0, torch.tensor([1]), math.nan))
    assert first_nonfinite(module, broken, random_state(torch.device("cpu"))) == "the images aren't finite"


def test_a_run_whose_numbers_are_finite_is_left_alone(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    states = []
    for callbacks in ([], [NonFinite()]):
        module = classifier()
        fit(make_trainer, tmp_path, module, *callbacks)
        assert module.before_step is None
        states.append(module.network.state_dict())
    assert same(*states)


# ------------------------------------------------------------------------------------------------------------ skip


@pytest.mark.parametrize(("name", "loss"), [*((name, False) for name in OPTIMIZERS), ("adamw", True)])
def test_a_skipped_step_changes_no_weight_and_no_moment_of_any_optimizer(
    name: str, loss: bool, configure: Configure, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    make = instantiate(configure(f"optimizer={name}")["optimizer"], _convert_="all")
    poison, watch = Poison(0, 5, loss=loss), NonFinite(on_nonfinite="skip")
    trainer = fit(make_trainer, tmp_path, classifier(make), poison, watch)
    changed = [not same(a, b) for a, b in itertools.pairwise(poison.states[step] for step in range(8))]
    assert changed == [False, True, True, True, True, False, True]
    assert trainer.global_step == 8, "a skipped step counts"
    assert watch.skipped == 2
    assert skipped(tmp_path) == [(1, 1), (6, 2)]


def test_above_the_limit_the_run_stops(
    make_trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = NonFinite(on_nonfinite="skip", max_skipped_steps=4)
    poison = Poison(0, 1, 3, 4, 6, 7)
    with (
        caplog.at_level(logging.WARNING, logger="vitlab"),
        pytest.raises(NonFiniteError, match=r"step 7 .*4 steps were skipped before.*nonfinite\.max_skipped_steps=4"),
    ):
        fit(make_trainer, tmp_path, classifier(), poison, watch)
    reported = [r.getMessage() for r in caplog.records if r.name == "vitlab.training.nonfinite"]
    assert "skipped, 3 of at most 4" in reported[2]


def test_a_run_that_is_resumed_counts_on(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make = partial(NonFinite, on_nonfinite="skip", max_skipped_steps=2)
    saved = tmp_path / "one.ckpt"
    fit(make_trainer, tmp_path, classifier(), Poison(1, 2), make(), max_epochs=1).save_checkpoint(saved)
    with pytest.raises(NonFiniteError, match="step 6"):
        fit(make_trainer, tmp_path, classifier(), Poison(5), make(), ckpt_path=str(saved))
    assert skipped(tmp_path) == [(2, 1), (3, 2)]


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="max_skipped_steps=-1 must be at least 0"):
        NonFinite(max_skipped_steps=-1)


def test_the_training_loss_is_the_mean_of_those_that_are_finite(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    module = Classifier(nn.Flatten(), num_classes=3)
    module._trainer = make_trainer()
    for value in (math.nan, math.inf):
        batch = torch.tensor([[0.0, 0.0, 0.0], [value, 0.0, 0.0]])
        losses = module.losses(batch, torch.tensor([0, 1]))
        assert not losses[1].isfinite()
        module.train_loss.update(losses)
    assert module.train_loss.compute() == pytest.approx(math.log(3))


# ---------------------------------------------------------------------------------------------------------- scaler


def scaled(scale: float) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scalers_overflows_are_left_to_it(fused: bool, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    plugin, watch, poison = scaled(4.0), NonFinite(), Poison(1, 3)
    make = partial(torch.optim.AdamW, lr=1e-2, fused=fused)
    fit(make_trainer, tmp_path, classifier(make), poison, watch, plugins=[plugin], gradient_clip_val=None)
    assert plugin.scaler is not None
    assert plugin.scaler.get_scale() == 1.0, "halved twice"
    assert [same(poison.states[a], poison.states[a + 1]) for a in range(4)] == [False, True, False, True]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("scale", "loss"), [(0.5, False), (1024.0, True)])
def test_but_not_a_loss_nor_an_overflow_that_no_scale_makes(
    fused: bool, scale: float, loss: bool, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    make, knobs = partial(torch.optim.AdamW, lr=1e-2, fused=fused), {"gradient_clip_val": None}
    poison, watch = Poison(1, loss=loss), NonFinite()
    with pytest.raises(NonFiniteError, match="loss inf" if loss else "gradient norm inf"):
        fit(make_trainer, tmp_path, classifier(make), poison, watch, plugins=[scaled(scale)], **knobs)
    poison, watch = Poison(1, loss=loss), NonFinite(on_nonfinite="skip")
    fit(make_trainer, tmp_path, classifier(make), poison, watch, plugins=[scaled(scale)], **knobs)
    assert [same(poison.states[a], poison.states[a + 1]) for a in range(3)] == [False, True, False]
    assert watch.skipped == 1
