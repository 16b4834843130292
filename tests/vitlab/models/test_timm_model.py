"""timm's models in this project's harness: other sizes, channels and classes, and a name that isn't one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Trainer
from timm.layers.drop import DropPath

from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.fake import fake
from vitlab.models.timm_model import timm_model
from vitlab.models.vit import VisionTransformer
from vitlab.training import schedules
from vitlab.training.classifier import Classifier


@pytest.mark.parametrize(
    ("name", "size", "channels"), [("test_vit", 48, 2), ("test_vit", (32, 48), 1), ("resnet18", 40, 4)]
)
def test_any_size_and_any_number_of_channels_and_classes_can_be_had(
    name: str, size: int | tuple[int, int], channels: int
) -> None:
    model = timm_model(model_name=name, num_classes=7, in_channels=channels, image_size=size).eval()
    height, width = (size, size) if isinstance(size, int) else size
    assert model(torch.zeros(2, channels, height, width)).shape == (2, 7)


@pytest.mark.parametrize("name", ["test_vit", "resnet18"])
def test_a_baseline_trains_and_is_tested_in_the_same_harness(name: str, make_trainer: Callable[..., Trainer]) -> None:
    torch.manual_seed(0)
    source = partial(fake, samples=60, test_samples=31, size=32, channels=2, num_classes=6)
    data = DataModule(source=source, augment=Augment(), image_size=32, batch_size=18, seed=0)
    model = timm_model(model_name=name, num_classes=6, in_channels=2, image_size=32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    make = partial(torch.optim.AdamW, lr=1e-3)
    module = Classifier(model, num_classes=6, optimizer=make, schedule=schedules.constant)
    trainer = make_trainer(max_epochs=1, gradient_clip_val=1.0, accumulate_grad_batches=2)
    trainer.fit(module, data)
    assert trainer.global_step == 3
    assert all(not torch.equal(model.get_parameter(name), before[name]) for name, _ in model.named_parameters())
    trainer.test(module, data, verbose=False)
    assert int(trainer.callback_metrics["test/count"]) == 31
    assert all(torch.isfinite(value) for value in trainer.callback_metrics.values())


def test_stochastic_depth_is_passed_on() -> None:
    make = partial(timm_model, model_name="test_vit", num_classes=3, in_channels=3, image_size=32)
    rates = [module.drop_prob for module in make(drop_path=0.2).modules() if isinstance(module, DropPath)]
    assert max(map(float, rates)) == pytest.approx(0.2)
    assert not any(isinstance(module, DropPath) for module in make().modules())


def test_an_unknown_name_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(ValueError, match=r"model\.model_name=resnet81 is no timm model; did you mean .*resnet"):
        timm_model(model_name="resnet81", num_classes=3, in_channels=3)


MINI = {"patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 4}


def test_a_vit_of_equal_geometry_is_the_same_network_as_ours() -> None:
    sizes: dict[str, Any] = {"num_classes": 10, "in_channels": 1, "image_size": 8, "drop_path": 0.1}
    theirs = timm_model(model_name="vit_tiny_patch16_224", options=MINI, **sizes).eval()
    ours = VisionTransformer(patch_size=2, dim=64, depth=4, heads=4, init="timm", **sizes).eval()
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters()) == 202_186
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patchsize": 2}, r"model\.options\.patchsize: .* no such argument; did you mean 'patch_size'.*, embed_dim,"),
        ({"drop_path_rate": 0.1}, r"model\.options\.drop_path_rate can't be set here: model\.drop_path decides it"),
        ({"in_chans": 1}, r"model\.options\.in_chans can't be set here: data decides it"),
    ],
)
def test_arguments_that_timm_lacks_or_others_decide_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm_model(model_name="test_vit", num_classes=3, in_channels=3, image_size=32, options=options)
