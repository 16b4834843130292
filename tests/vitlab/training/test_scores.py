"""Scores are exact sums, whatever the network's precision."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning import Trainer
from torch.overrides import TorchFunctionMode

from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.digits import digits
from vitlab.models.vit import VisionTransformer
from vitlab.training import schedules
from vitlab.training.classifier import Classifier, gradient_norm, logged_scores
from vitlab.training.scores import Count, Mean, Scores, at_least_float32


def module() -> Classifier:
    torch.manual_seed(0)
    network = VisionTransformer(image_size=8, patch_size=4, dim=16, depth=1, heads=2, num_classes=10, in_channels=1)
    return Classifier(network, num_classes=10, optimizer=torch.optim.AdamW, schedule=schedules.constant)


def test_counts_and_losses_are_not_summed_in_the_networks_type() -> None:
    data = DataModule(source=digits, image_size=8, batch_size=64, eval_batch_size=5, augment=Augment(), seed=0)
    data.setup()
    trainer = Trainer(
        precision="bf16-true",
        max_epochs=1,
        limit_train_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    classifier = module()
    trainer.fit(classifier, data)
    logits: list[torch.Tensor] = []
    classifier.network.register_forward_hook(lambda *call: logits.append(call[2].double()))
    trainer.test(classifier, data, verbose=False)
    scores = logged_scores(trainer, "test")
    count = len(data.split("test"))
    assert count == 360  # above 256, where bfloat16 counts in steps of 2
    assert scores["test/count"] == count
    assert scores["test/acc"] == pytest.approx(scores["test/correct"] / count)
    assert trainer.callback_metrics["test/loss"].dtype == torch.float64
    exact = torch.nn.functional.cross_entropy(torch.cat(logits), data.split("test").labels)
    assert scores["test/loss"] == pytest.approx(float(exact), rel=1e-6)


def test_sums_keep_their_types_and_a_norm_is_of_float32() -> None:
    classifier = module().to(torch.bfloat16)
    classifier.train_loss.update(torch.full((1000,), 1.001))
    assert float(classifier.train_loss.compute()) == pytest.approx(1.001)
    gradients = [torch.full((1000,), 1.0, dtype=torch.bfloat16), torch.full((27,), 1.0, dtype=torch.bfloat16)]
    assert float(gradient_norm(gradients)) == pytest.approx(1027**0.5)


def test_a_mean_counts_what_is_not_finite_unless_it_is_of_finite_values() -> None:
    values = torch.tensor([1.0, 3.0, float("nan")])
    every, finite = Mean(), Mean(finite_only=True)
    every.update(values)
    finite.update(values)
    assert every.compute().isnan()
    assert finite.compute() == 2


class Moves(TorchFunctionMode):
    """Notes where tensors would be moved, and leaves them where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.moves = set[tuple[torch.dtype, str, torch.dtype]]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.to:
            return func(*args, **(kwargs or {}))
        tensor, device, dtype = args
        self.moves.add((tensor.dtype, device.type, dtype))
        return tensor


@pytest.mark.parametrize(("device", "widest"), [("cpu", torch.float64), ("mps", torch.float32)])
def test_sums_are_as_exact_as_a_device_can(device: str, widest: torch.dtype) -> None:
    scores = Scores({"loss": Mean(), "count": Count()})
    with Moves() as moves:
        scores._apply(lambda tensor: cast(torch.Tensor, SimpleNamespace(device=torch.device(device))))
    assert {(torch.float64, device, widest), (torch.int64, device, torch.int64)} <= moves.moves
    assert (torch.float64, device, torch.float64) not in moves.moves or widest == torch.float64


def test_numbers_are_widened_to_float32_and_never_narrowed() -> None:
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    wide = [at_least_float32(torch.ones(1, dtype=kind)).dtype for kind in kinds]
    assert wide == [torch.float32, torch.float32, torch.float32, torch.float64]
