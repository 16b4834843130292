"""A preview has the pixels and targets that training gets, on any number of devices, and the operations' own."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from vitlab.data import augment_ops
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.digits import digits
from vitlab.data.sets.image_folder import image_folder
from vitlab.diagnostics import preview
from vitlab.diagnostics.preview import operations, target_title
from vitlab.models.vit import VisionTransformer
from vitlab.training import build, schedules
from vitlab.training.classifier import Classifier

TRAINER: Any = {
    "_target_": "lightning.Trainer",
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "precision": "32-true",
    "max_epochs": 3,
    "max_steps": -1,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
    "limit_val_batches": 0,
}


class Capture(Callback):
    """Keeps the batches of one optimizer step."""

    def __init__(self, step: int) -> None:
        self.step, self.batches = step, list[Any]()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            self.batches.append(batch)


def memory_data() -> DataModule:
    augment = Augment(degrees=8.0, crop_padding=1, auto_augment="randaugment", erasing=0.3, mixup=0.4, cutmix=1.0)
    return DataModule(source=digits, augment=augment, image_size=8, batch_size=96, seed=3, num_workers=0)


def folder_data(drawn: Path) -> DataModule:
    augment, source = (
        Augment(flip=True, mixup=0.3, auto_augment="trivialaugment"),
        partial(image_folder, data_dir=str(drawn)),
    )
    return DataModule(source=source, augment=augment, image_size=16, batch_size=20, seed=3, num_workers=1)


def loaded(data: DataModule) -> DataModule:
    data.setup()
    return data


def trained_batches(data: DataModule, step: int, folder: Path, **settings: Any) -> list[Any]:
    network = VisionTransformer(
        image_size=data.image_size,
        patch_size=4,
        in_channels=data.channels,
        num_classes=data.num_classes,
        dim=16,
        depth=1,
        heads=2,
    )
    sgd = partial(torch.optim.SGD, lr=0.1)
    module = Classifier(network, num_classes=data.num_classes, optimizer=sgd, schedule=schedules.constant)
    trainer = build.build_trainer({**TRAINER, **settings}, run_dir=folder)
    trainer.callbacks.append(capture := Capture(step))  # type: ignore[attr-defined]
    trainer.fit(module, data)
    return capture.batches


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*limit_val_batches", "ignore:.*epoch_id")
@pytest.mark.parametrize("where", ["memory", "accumulated", "files"])
def test_the_pixels_and_targets_are_those_of_a_real_training(where: str, drawn: Path, tmp_path: Path) -> None:
    make = partial(folder_data, drawn) if where == "files" else memory_data
    settings: Any = {"accumulate_grad_batches": 2} if where == "accumulated" else {}
    trained = trained_batches(loaded(make()), 6, tmp_path, **settings)
    preview.go_to_step(data := loaded(make()), {**TRAINER, **settings}, 6, tmp_path)
    shown = [preview.training_batch(data, plan) for plan in preview.step_plans(data)]
    assert len(shown) == len(trained) == (2 if settings else 1)
    for one, other in zip(shown, trained, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert one[2:] == other[2:]
    preview.go_to_step(data, {**TRAINER, **settings}, 7, tmp_path)
    assert not torch.equal(preview.training_batch(data, preview.step_plans(data)[0]).images, trained[0].images)


def test_a_step_is_shown_at_the_size_of_its_epoch(tmp_path: Path) -> None:
    data = loaded(
        DataModule(source=digits, augment=Augment(), image_size=16, batch_size=96, seed=3, size_schedule={1: 12})
    )
    shown = []
    for step in (6, 20):
        preview.go_to_step(data, TRAINER, step, tmp_path)
        shown.append(preview.training_batch(data, preview.step_plans(data)[0]).images.shape[-1])
    assert shown == [16, 12]


def test_two_devices_are_shown_as_two_parts_of_one_step(tmp_path: Path) -> None:
    preview.go_to_step(data := loaded(memory_data()), {**TRAINER, "devices": 2}, 5, tmp_path)
    plans = preview.step_plans(data)
    assert [plan.micro for plan in plans] == [0, 1]
    assert len({index for plan in plans for index in plan.indices}) == plans[0].count
    accumulated = {**TRAINER, "accumulate_grad_batches": 2}
    preview.go_to_step(other := loaded(memory_data()), accumulated, 5, tmp_path)
    assert preview.step_plans(other) == plans


def test_a_step_after_the_end_is_refused(tmp_path: Path) -> None:
    data = loaded(memory_data())
    with pytest.raises(ValueError, match=r"step=42: this training has the steps 0 to 41; choose one"):
        preview.go_to_step(data, TRAINER, 42, tmp_path)
    preview.go_to_step(data, TRAINER, 41, tmp_path)
    assert preview.step_plans(data)[0].epoch == 2


def test_targets_are_named_with_their_weights() -> None:
    classes = ("cat", "dog", "cow")
    assert target_title(torch.tensor(1), classes) == "dog"
    assert target_title(torch.tensor([0.25, 0.75, 0.0]), classes) == "dog 0.75\ncat 0.25"


def test_each_operation_is_torchvision_s_at_its_level() -> None:
    image = (torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    cells, titles = operations(image, [0, 30])
    assert len(cells) == len(titles) == 2 * len(augment_ops.NAMES)
    pairs = {name: cells[2 * index : 2 * index + 2] for index, name in enumerate(augment_ops.NAMES)}
    assert torch.equal(pairs["Identity"], image.expand(2, -1, -1, -1))
    assert torch.equal(pairs["Posterize"][1], tv.posterize(image[0], 4))
    assert torch.equal(pairs["Equalize"][0], tv.equalize(image[0]))
    table: Any = v2.RandAugment._AUGMENTATION_SPACE
    rotated = table["Rotate"][0](31, 20, 24)[30]
    assert titles[2 * augment_ops.NAMES.index("Rotate") + 1] == f"{float(rotated):.3g}" == "30"
    assert not torch.equal(pairs["Brightness"][0], pairs["Brightness"][1])


def test_the_pictures_are_drawn(tmp_path: Path) -> None:
    files = preview.draw_previews(loaded(memory_data()), TRAINER, tmp_path, step=2, count=5, levels=[0, 30])
    assert [file.name for file in files] == ["evaluation.png", "operations.png", "training.png"]
    assert all(np.asarray(Image.open(file).convert("L")).std() > 30 for file in files)
