"""A plan has the steps, rates and sizes of the training that it is a plan of."""

from pathlib import Path
from typing import Any

import pytest

from plan_accuracy import planned_configuration
from teachers import VIT, digits_teacher
from vitlab.diagnostics import plan
from vitlab.diagnostics.plan import Need, advice, device_memory, planned_classifier, planned_data, rates, write_plan
from vitlab.models.flops import count_flops
from vitlab.models.vit import VisionTransformer
from vitlab.training import build

SMALL = ["model.dim=16", "model.depth=1", "model.heads=2"]
OPTIONS: Any = {"device": "here", "mfu": 0.4, "memory_gb": None, "measure": False}


def plan_of(folder: Path, *overrides: str, **options: Any) -> Any:
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text("[]")
    config = planned_configuration([*SMALL, *overrides], folder)
    return write_plan(config, *planned_data(config, None, None), folder, **{**OPTIONS, **options})


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule.warmup_fraction=0.1"],
        ["trainer.max_epochs=7", "batch_size=100", "data.drop_last=true", "classifier.layer_decay=0.5"],
        ["+trainer.limit_train_batches=5", "trainer.accumulate_grad_batches=2", "schedule=reciprocal_sqrt"],
        ["trainer.max_steps=50", "schedule=warmup_linear", "data.max_train_samples=300"],
    ],
)
def test_steps_and_rates_are_those_of_the_training(overrides: list[str], tmp_path: Path) -> None:
    config = planned_configuration([*SMALL, *overrides], tmp_path)
    found = plan_of(tmp_path, *overrides)
    data = build.build_data(config["data"])
    trainer: Any = build.build_trainer({**config["trainer"], "enable_checkpointing": False}, run_dir=tmp_path)
    module = build.build_classifier(
        config["model"], data, config["classifier"], optimizer=config["optimizer"], schedule=config["schedule"]
    )
    trainer.datamodule = data
    data.trainer, module.trainer = trainer, trainer
    assert (found["steps_per_epoch"], found["steps"]) == (data.steps_per_epoch, module.total_steps())
    assert (found["images"], found["classes"]) == (data.samples["train"], data.num_classes)
    sizes = [len(part) for part in data.train_dataloader().batch_sampler.step_ranges]  # type: ignore[union-attr]
    assert found["images_seen"] == pytest.approx(found["steps"] * sum(sizes) / len(sizes), abs=1)
    configured: Any = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    expected = dict(map(tuple, found["learning_rate"]))
    for step in range(found["steps"]):
        if step in expected:
            assert max(group["lr"] for group in optimizer.param_groups) == pytest.approx(expected[step], abs=1e-12)
        optimizer.step()
        scheduler.step()
    assert min(expected) == 0
    assert max(expected) == found["steps"] - 1
    decays = [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
    assert [(group["name"], group["weight_decay"]) for group in found["groups"]] == decays


def test_flops_are_those_of_the_sizes_of_the_epochs_and_memory_that_of_the_largest(tmp_path: Path) -> None:
    options = ["model.patch_size=4", "trainer.max_epochs=3"]
    sizes = {size: plan_of(tmp_path, f"image_size={size}", *options) for size in (8, 12, 16)}
    found = plan_of(tmp_path, "image_size=12", "data.size_schedule={0: 8, 2: 16}", *options)
    assert found["flops_per_image"] == (2 * sizes[8]["flops_per_image"] + sizes[16]["flops_per_image"]) // 3
    assert found["memory"]["activations"] == sizes[16]["memory"]["activations"]
    assert [found[key] for key in ("steps", "images_seen")] == [sizes[8][key] for key in ("steps", "images_seen")]


def test_a_teacher_counts_in_parameters_memory_and_hours(tmp_path: Path) -> None:
    (tmp_path / "plan").mkdir()
    teacher = digits_teacher(tmp_path / "teacher")
    network = VisionTransformer(image_size=8, **VIT)
    parameters = sum(p.numel() for p in network.parameters())
    forward = count_flops(network, (1, 8, 8), backward=False)
    options: dict[str, Any] = {"device": "h100", "mfu": 0.5}
    alone = plan_of(tmp_path / "plan", "trainer.precision=bf16-mixed", **options)
    settings = [f"classifier.teacher={teacher}", "classifier.distillation=hard", "trainer.precision=bf16-mixed"]
    found = plan_of(tmp_path / "plan", *settings, **options)
    assert (found["teacher_parameters"], found["teacher_flops_per_image"]) == (parameters, forward)
    assert found["memory"]["teacher"] == 4 * parameters
    assert found["memory"]["total"] == alone["memory"]["total"] + 4 * parameters
    assert found["flops_per_image"] == alone["flops_per_image"]
    assert found["hours"] / alone["hours"] == pytest.approx(1 + forward / alone["flops_per_image"])
    assert "teacher_parameters" not in alone


def test_the_data_may_be_absent_if_its_sizes_are_given(tmp_path: Path) -> None:
    config = planned_configuration(["experiment=plain_s16", "trainer.devices=8", f"data_dir={tmp_path}/no"], tmp_path)
    with pytest.raises(
        ValueError, match=r"no is not a folder.*; set images and classes \(of ImageNet-1k images=1281167"
    ):
        planned_data(config, None, None)
    with pytest.raises(ValueError, match="; set classes "):
        planned_data(config, 1_281_167, None)
    data, status = planned_data(config, 1_281_167, 1000)
    assert status.startswith("not here: data_dir=")
    assert (data.samples["train"], data.num_classes, data.channels) == (1_268_355, 1000, 3)
    module = planned_classifier(config, data, "meta")
    assert sum(p.numel() for p in module.network.parameters()) == 22_122_472
    assert (data.steps_per_epoch, module.total_steps()) == (1238, 111_477)


def test_a_folder_that_is_here_is_listed(drawn: Path, tmp_path: Path) -> None:
    config = planned_configuration(["data=image_folder", f"data_dir={drawn}", "image_size=32"], tmp_path)
    data, status = planned_data(config, None, None)
    loaded = build.build_data(config["data"])
    assert (status, data.num_classes) == ("here", loaded.num_classes)
    assert data.samples["train"] == pytest.approx(loaded.samples["train"], abs=1)


def test_a_set_that_would_be_downloaded_is_reported(tmp_path: Path) -> None:
    config = planned_configuration(["data=cifar10", f"data_dir={tmp_path}"], tmp_path)
    data, status = planned_data(config, None, None)
    assert (status, data.samples["train"]) == (f"not in {tmp_path}: downloaded when the training starts", 45_000)
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert planned_data(config, None, None)[1] == "here"


def test_memory_grows_linearly_beyond_the_images_that_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = plan_of(tmp_path, "batch_size=256", "trainer.devices=2")["memory"]
    monkeypatch.setattr(plan, "MOST_IMAGES", 128)
    exact = plan_of(tmp_path, "batch_size=128")["memory"]
    assert parts["activations"] == pytest.approx(exact["activations"], rel=0.02), "of one device"
    assert parts["buckets"] == exact["gradients"]
    assert parts["total"] == sum(size for name, size in parts.items() if name != "total")


def test_averages_buckets_and_shards_change_the_memory(tmp_path: Path) -> None:
    counted = {"weights": 8, "gradients": 8, "optimizer": 16}
    expected = {
        "trainer=default": counted,
        "trainer=ddp": counted,  # gradients are views of the buckets
        "callbacks=ema": {**counted, "average": 8},
        "callbacks=ema trainer.precision=bf16-true": {**counted, "average": 16},
        "trainer=fsdp": {"weights": 4, "gradients": 4, "optimizer": 8},
        "trainer=fsdp callbacks=ema": {"weights": 4, "gradients": 4, "optimizer": 8, "average": 4},
    }
    for override, memory in expected.items():
        config = planned_configuration(override.split(), tmp_path)
        assert device_memory(counted, config, config["trainer"]["devices"]) == memory, override
    assert device_memory(counted, planned_configuration([], tmp_path), 2) == {**counted, "buckets": 8}


def test_hours_of_a_named_device_follow_from_its_peak(tmp_path: Path) -> None:
    found = plan_of(tmp_path, "trainer.precision=bf16-mixed", "trainer.devices=4", device="h100", mfu=0.5)
    assert found["hours"] == pytest.approx(
        found["images_seen"] * found["flops_per_image"] / (0.5 * 989.4e12 * 4) / 3600
    )
    assert found["hours_from"] == "h100, MFU 0.5 assumed"
    assert plan_of(tmp_path)["hours"] is None
    measured = plan_of(tmp_path, measure=True)
    assert measured["hours"] > 0
    assert measured["hours_from"] == "measured on this cpu"


def lines(memory_gb: float, total: int, needs: dict[str, Need]) -> list[str]:
    known = {"memory": {"total": total}, "memory_gb": memory_gb, "devices": 2, "batch_size": 200}
    return list(advice(known, needs, {"stored": "", "recomputed": "model.activation_checkpointing=true "}))


def test_what_does_not_fit_comes_with_what_would() -> None:
    parts = {"weights": 10**9}
    needs = {"stored": Need(parts, 10**8, 0), "recomputed": Need(parts, 10**7, 0)}
    total = needs["stored"].total(100)
    assert total == 11 * 10**9
    assert lines(16, total, needs) == ["fits: 11.00 GB on a device of 16 GB, a tenth of which is kept free"]
    assert lines(5, total, needs) == [
        "does not fit: 11.00 GB on a device of 5 GB, a tenth of which is kept free",
        "fits with trainer.accumulate_grad_batches=3: 4.40 GB",  # 34 images at a time
        "fits with model.activation_checkpointing=true: 2.00 GB",
    ]
    assert lines(1, total, needs)[1:] == [
        "weights, gradients and optimizer alone don't fit: trainer=fsdp shards them over devices"
    ]


def test_rates_are_sampled_from_the_first_to_the_last_step(tmp_path: Path) -> None:
    from torch import nn
    from torch.optim import SGD
    from torch.optim.lr_scheduler import LambdaLR

    scheduler = LambdaLR(SGD(nn.Linear(1, 1).parameters(), lr=2.0), lambda step: 1 / (1 + step))
    assert rates(scheduler, 1) == [[[0, 2.0]]]
    assert rates(scheduler, 3) == [[[0, 2.0], [1, 1.0], [2, 2 / 3]]]
    (curve,) = rates(scheduler, 100_000)
    assert (len(curve), curve[0][0], curve[-1][0]) == (plan.POINTS, 0, 99_999)
