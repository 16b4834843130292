"""Weights are exported as in the checkpoint, averaged or not, with the classes and preprocessing of the run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from conftest import Configure, Exportable
from vitlab.evaluation.checkpoint import load_weights
from vitlab.export.checkpoint import color_weights, load_export_model, random_images
from vitlab.jobs import fingerprint
from vitlab.runs import folder
from vitlab.training import build
from vitlab.training.checkpoint_files import AtomicFiles

MODEL = ["model.dim=16", "model.depth=1", "model.heads=2"]


@pytest.fixture
def averaging(configure: Configure, make_trainer: Any, tmp_path: Path) -> Path:
    """A run folder with the checkpoint that Lightning's averaging saves in a training of digits."""
    run = tmp_path / "run"
    config = configure(*MODEL, "schedule.warmup_steps=0")
    folder.write_config(run, config)
    datamodule = build.build_data(config["data"])
    parts = {key: config[key] for key in ("optimizer", "schedule")}
    module = build.build_classifier(config["model"], datamodule, config["classifier"], **parts)
    module.identity = fingerprint.run_identity(config, datamodule)
    ema = WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.5))  # type: ignore[no-untyped-call]
    trainer = make_trainer(max_steps=3, callbacks=[ema], limit_val_batches=0, plugins=[AtomicFiles()])
    trainer.fit(module, datamodule)
    trainer.save_checkpoint(run / "checkpoints" / "last.ckpt")
    return run


@pytest.mark.filterwarnings(
    "ignore:.*many workers", "ignore:.*logging interval", "ignore:.*overrides the configure_model"
)
def test_averaged_and_raw_weights_are_chosen_by_name(averaging: Path) -> None:
    content = torch.load(averaging / "checkpoints" / "last.ckpt", weights_only=True)
    name = "head.weight"
    for weights, key in ((None, "state_dict"), ("ema", "state_dict"), ("raw", "current_model_state")):
        trained = load_export_model(load_weights(averaging, "last", weights))
        assert torch.equal(trained.network.state_dict()[name], content[key][f"network.{name}"])
        assert trained.weights.chosen == (weights or "ema")
    assert content["state_dict"].keys() == content["current_model_state"].keys()
    assert trained.classes == tuple("0123456789")
    assert (trained.channels, trained.image_size, trained.crop_fraction) == (1, (8, 8), None)


def test_a_network_of_half_precision_is_computed_in_float32(exportable: Exportable) -> None:
    trained = exportable()
    content = torch.load(trained.weights.file, weights_only=True)
    content["state_dict"] = {name: tensor.bfloat16() for name, tensor in content["state_dict"].items()}
    torch.save(content, trained.weights.file)
    network = load_export_model(load_weights(trained.weights.run, "best", None)).network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert torch.equal(network.state_dict()["norm.bias"], content["state_dict"]["network.norm.bias"].float())


def test_the_arguments_hold_what_the_signature_and_the_data_add(exportable: Exportable) -> None:
    trained = exportable(in_channels=1)
    assert trained.weights.kind == "vit"
    assert (trained.arguments["in_channels"], trained.arguments["num_classes"]) == (1, 7)
    assert trained.arguments["pool"] == "cls"
    assert not trained.network.training


def test_random_images_are_bytes_and_reproducible(exportable: Exportable) -> None:
    trained = exportable(image_size=(16, 24))
    one = random_images(trained, 3, seed=1)
    assert (one.dtype, tuple(one.shape)) == (torch.uint8, (3, 3, 16, 24))
    assert torch.equal(one, random_images(trained, 3, seed=1))
    assert not torch.equal(one, random_images(trained, 3, seed=2))


def test_a_network_of_gray_images_takes_gray_colors_with_equal_logits(exportable: Exportable) -> None:
    gray = exportable(in_channels=1)
    colors = load_export_model(color_weights(gray.weights))
    assert (colors.channels, colors.arguments["in_channels"], gray.channels) == (3, 3, 1)
    images = random_images(gray, 4)
    expected = gray.network(gray.prepare()(images))
    logits = colors.network(colors.prepare()(images.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
