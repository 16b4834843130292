"""The counted memory of a step is that of a real training, for any network, precision and optimizer."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim.lamb import Lamb

import plan_accuracy
from vitlab.diagnostics.memory import Allocations, count_step
from vitlab.models import attention
from vitlab.models.vit import VisionTransformer
from vitlab.training import schedules
from vitlab.training.classifier import Classifier

SMALL = ["model.dim=32", "model.depth=3", "model.heads=2", "batch_size=128"]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*limit_val_batches")
@pytest.mark.parametrize(
    "overrides",
    [
        [*SMALL, "model.drop_path=0.2", "model.dropout=0.1"],
        [*SMALL, "trainer.precision=bf16-mixed", "model.activation_checkpointing=true", "optimizer=lion"],
        ["model=timm", "model.model_name=test_vit", "image_size=160", "data=fake", "batch_size=4"],
    ],
    ids=["float32", "recomputed", "timm"],
)
def test_the_memory_is_within_15_percent_of_a_real_trainings(overrides: list[str], tmp_path: Path) -> None:
    counted, measured = plan_accuracy.compare(overrides, tmp_path)
    assert counted == pytest.approx(measured, rel=0.15)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*limit_val_batches")
@pytest.mark.parametrize("name", plan_accuracy.MODELS)
def test_the_memory_of_the_table_s_models_is_within_5_percent(name: str, tmp_path: Path) -> None:
    counted, measured = plan_accuracy.compare(plan_accuracy.MODELS[name], tmp_path)
    assert counted == pytest.approx(measured, rel=0.05)


def classifier(make: Any, **settings: Any) -> Classifier:
    arguments = {"image_size": 16, "patch_size": 4, "num_classes": 10, "dim": 32, "depth": 2, "heads": 2, **settings}
    with torch.device("meta"):
        network = VisionTransformer(**arguments)
    module = Classifier(network, num_classes=10, optimizer=make, schedule=schedules.constant)
    trainer: Any = type("Trainer", (), {"estimated_stepping_batches": 9, "datamodule": None})()
    module._trainer = trainer
    return module


@pytest.mark.parametrize(
    ("make", "states"),
    [
        (partial(torch.optim.SGD, lr=0.1), 0),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True), 1),
        (partial(torch.optim.AdamW, lr=0.1), 2),  # reads its step, which fake tensors don't have
        (partial(Lamb, lr=0.1), 2),
    ],
    ids=["sgd", "momentum", "adamw", "lamb"],
)
def test_the_parts_are_as_large_as_the_weights_or_a_multiple(make: Any, states: int) -> None:
    memory, scheduler = count_step(
        module := classifier(make), 4, (3, 16, 16), precision="32-true", checkpointing=False, on_cpu=True
    )
    size = 4 * sum(p.numel() for p in module.network.parameters())
    assert (memory["weights"], memory["gradients"]) == (size, size)
    assert memory["optimizer"] == pytest.approx(states * size, abs=8 * 40), "and a step of each tensor"
    assert memory["activations"] > 0
    assert scheduler.base_lrs[0] == 0.1


def test_recomputed_activations_take_less_whatever_is_configured() -> None:
    make = partial(torch.optim.SGD, lr=0.1)
    options: Any = {"precision": "32-true", "on_cpu": True}
    found = [
        count_step(
            classifier(make, depth=4, activation_checkpointing=own), 8, (3, 16, 16), checkpointing=how, **options
        )
        for how in (True, False)
        for own in (True, False)
    ]
    first, second, third, fourth = (memory["activations"] for memory, _ in found)
    assert first == second < third == fourth


def test_a_gpu_s_memory_is_counted_without_the_kernel_of_cpus() -> None:
    counts, tokens = [], attention.MAX_TOKENS
    for on_cpu in (True, False):
        module = classifier(partial(torch.optim.SGD, lr=0.1))
        options: Any = {"precision": "bf16-mixed", "checkpointing": False}
        counts.append(count_step(module, 64, (3, 16, 16), on_cpu=on_cpu, **options)[0]["activations"])
    assert counts[0] != counts[1], "which saves no output, and computes some images at a time"
    assert tokens == attention.MAX_TOKENS


def test_a_storage_counts_once_and_until_it_is_freed() -> None:
    weights = torch.zeros(100)
    with Allocations([weights, weights[:10]]) as counter:
        one = torch.ones(50)
        view = one.view(5, 10)
        assert counter.live == 600
        del one
        assert counter.live == 600
        del view
        assert (counter.live, counter.peak) == (400, 600)
