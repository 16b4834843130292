"""A replayed step has the same losses bit for bit, and the first value that isn't finite is located."""

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from conftest import Configure
from teachers import digits_teacher
from vitlab.diagnostics import replay
from vitlab.diagnostics.replay import NotReproducedError, ReplayResult
from vitlab.runs.folder import write_config
from vitlab.training import build
from vitlab.training.losses import Loss
from vitlab.training.nonfinite import NonFiniteError

Capture = Callable[..., Path]
VARIED = ["model.dropout=0.2", "model.attention_dropout=0.1", "model.drop_path=0.3", "data.augment.mixup=0.8"]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


class Spoil(Callback):
    """Before the second step: sets weights; or makes a gradient wrong after a good backward pass."""

    def __init__(self, **weights: float) -> None:
        self.weights = weights

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == 1:
            for name, value in self.weights.items():
                pl_module.get_parameter(f"network.{name}").data.fill_(value)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        gradient = pl_module.get_parameter("network.head.bias").grad
        if trainer.global_step == 1 and not self.weights and gradient is not None:
            gradient.fill_(math.nan)


@pytest.fixture
def capture(configure: Configure, small: list[str], tmp_path: Path) -> Capture:
    """Overrides, weights to be set -> the capture of the second step of a run."""

    def train(*overrides: str, **weights: float) -> Path:
        settings = [*small, "model.depth=2", "logger=csv", "schedule.warmup_steps=0", "batch_size=64", *overrides]
        config = configure(*settings)
        folder = Path(config["run_dir"])
        write_config(folder, config)
        datamodule = build.build_data(config["data"])
        options = {"optimizer": config["optimizer"], "schedule": config["schedule"]}
        module = build.build_classifier(config["model"], datamodule, config["classifier"], **options)
        trainer = build.build_trainer(config["trainer"], run_dir=folder, logger={}, callbacks=config["callbacks"])
        trainer.callbacks.insert(0, Spoil(**weights))  # type: ignore[attr-defined]
        with pytest.raises(NonFiniteError):
            trainer.fit(module, datamodule)
        (made,) = (folder / "captures").iterdir()
        return made

    return train


def captured(result: ReplayResult) -> list[float]:
    return [float(loss) for loss in result.captured]


@pytest.mark.parametrize(
    ("precision", "activation_checkpointing"), [("32-true", "false"), ("bf16-mixed", "true"), ("bf16-true", "false")]
)
def test_losses_are_repeated_bit_for_bit_and_finite_values_are_an_error(
    precision: str, activation_checkpointing: str, capture: Capture
) -> None:
    parts = "trainer.accumulate_grad_batches=3"
    checkpointed = f"model.activation_checkpointing={activation_checkpointing}"
    result = replay.replay_capture(
        capture(*VARIED, parts, checkpointed, f"trainer.precision={precision}"), accelerator="cpu"
    )
    assert len(result.losses) == 3
    assert len(set(captured(result))) == 3
    assert all(0 < loss < 3 for loss in captured(result))
    assert [float(loss) for loss in result.losses] == captured(result)
    assert result.is_reproduced
    assert result.what is None
    with pytest.raises(NotReproducedError, match=r"all values of step 2 of rank 0 are finite.*hardware error"):
        result.results()


def test_losses_of_a_teacher_and_of_weighted_classes_are_repeated(capture: Capture, tmp_path: Path) -> None:
    settings = [f"classifier.teacher={digits_teacher(tmp_path / 'teacher')}", "classifier.distillation=soft"]
    settings += ["model.distilled=true", "classifier.class_weights=balanced", "classifier.distillation_alpha=0.3"]
    result = replay.replay_capture(capture(*VARIED, *settings), accelerator="cpu")
    assert result.is_reproduced


def test_the_random_state_decides_them(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = capture(*VARIED)
    monkeypatch.setattr(replay, "restore_random_state", lambda *_: torch.manual_seed(7))
    result = replay.replay_capture(folder, accelerator="cpu")
    assert not result.is_reproduced


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_first_module_whose_output_overflows_is_named_with_its_ranges(loss: str, capture: Capture) -> None:
    folder = capture(f"classifier.loss={loss}", *VARIED, **{"blocks.1.mlp.fc1.weight": 3e38})
    result = replay.replay_capture(folder, accelerator="cpu")
    results = result.results()
    assert (results["what"], results["module"]) == ("an output", "blocks.1.mlp.fc1")
    assert results["reproduced"]
    assert results["losses"] == results["losses_in_training"] == ["nan"]
    lines = results["details"]
    assert "finite" in lines[1]
    assert " of " in lines[2]
    assert lines[3].startswith("blocks.1.mlp.fc1.weight: 3e+38 .. 3e+38")
    outputs = list(results["outputs"].items())
    first = next(i for i, (_, stats) in enumerate(outputs) if "finite" not in stats)
    assert outputs[first][0] == "blocks.1.mlp.fc1"


def test_a_parameter_that_was_not_finite_before_is_reported_first(capture: Capture) -> None:
    result = replay.replay_capture(capture(**{"blocks.0.norm2.bias": math.nan}), accelerator="cpu")
    assert (result.what, result.module) == ("a parameter, before the step", "blocks.0.norm2")
    assert result.lines[0] == "blocks.0.norm2.bias: 16 nan of 16"


def test_a_loss_of_finite_outputs_is_named(capture: Capture) -> None:
    def huge(self: Loss, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.exp() * 1e38 * 50).sum(dim=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loss, "__call__", huge)
        result = replay.replay_capture(capture(), accelerator="cpu")
    assert (result.what, result.module) == ("the loss", None)
    assert result.lines == ["all outputs are finite; the losses of 62 of 62 images aren't"]


def test_the_last_layer_whose_gradient_is_not_finite_is_named(capture: Capture) -> None:
    def steep(self: Loss, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits - logits.detach()).sqrt().sum(dim=1)  # 0, with an infinite slope

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loss, "__call__", steep)
        result = replay.replay_capture(capture(), accelerator="cpu")
    assert (result.what, result.module) == ("a gradient", "head")
    assert result.lines[0].startswith("gradient of head.bias: ")
    assert result.lines[1].startswith("head.weight: ")


def test_a_norm_that_overflows_though_no_gradient_does_is_named(capture: Capture) -> None:
    weights = {"norm.weight": 1e-25, "head.weight": 0.0, "head.bias": 0.0}
    folder = capture(**weights, **{"norm.bias": 1e25})
    result = replay.replay_capture(folder, accelerator="cpu")
    assert (result.what, result.module) == ("the gradient's norm", "head")
    assert result.lines[1].startswith("head.weight: -")


def test_a_report_is_logged(capture: Capture, caplog: pytest.LogCaptureFixture) -> None:
    result = replay.replay_capture(capture(**{"blocks.0.attn.proj.weight": 3e38}), accelerator="cpu")
    with caplog.at_level(logging.INFO, logger="vitlab"):
        result.log_report()
    for line in (
        "step 2, epoch 1: gradient norm nan",
        "part 1 of 1: loss nan; in training the same",
        "first non-finite value: an output, in blocks.0.attn.proj (part 1)",
        "blocks.0.attn.proj.weight: 3e+38",
    ):
        assert line in caplog.text


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"losses": [[1.0], ["nan"]], "ranks": 2}, "rank 1's; use rank=1"),
        ({"device": "cuda"}, "computed on cuda; use that accelerator"),
        ({"ranks": 2, "losses": [[1.0], [1.0]]}, r"replay the other ranks \(rank=0..1\)"),
    ],
)
def test_if_all_values_are_finite_the_error_says_where_else_to_look(changes: dict[str, Any], hint: str) -> None:
    info = {"step": 3, "losses": [[1.0]], "ranks": 1, "device": "cpu", **changes}
    with pytest.raises(NotReproducedError, match=hint):
        ReplayResult(info, 0, torch.device("cpu"), compiled=False).results()
