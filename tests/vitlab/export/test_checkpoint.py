"""Weights are exported as in the checkpoint, averaged or not, with the classes and preprocessing of the run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from conftest import Configure, Exportable
from vitlab.evaluation.checkpoint import load_weights
from vitlab.export.checkpoint import color_weights, load_export_model, network_tensors, unit_scales
from vitlab.export.graph import example_input
from vitlab.jobs import identity
from vitlab.models.vit import VisionTransformer
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
    module.identity = identity.run_identity(config, datamodule)
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
    one = example_input(trained, True, 3, seed=1)
    assert (one.dtype, tuple(one.shape)) == (torch.uint8, (3, 3, 16, 24))
    assert torch.equal(one, example_input(trained, True, 3, seed=1))
    assert not torch.equal(one, example_input(trained, True, 3, seed=2))


def test_a_network_of_gray_images_takes_gray_colors_with_equal_logits(exportable: Exportable) -> None:
    gray = exportable(in_channels=1)
    colors = load_export_model(color_weights(gray.weights))
    assert (colors.channels, colors.arguments["in_channels"], gray.channels) == (3, 3, 1)
    images = example_input(gray, True, 4)
    expected = gray.network(gray.prepare()(images))
    logits = colors.network(colors.prepare()(images.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("before", "covered", "after"),
    [
        ({"num_registers": 2}, 0, {"pos_embed_on_patches_only": True}),
        ({"num_registers": 2, "pos_embed_on_registers": False}, 0, {"pos_embed_on_patches_only": True}),
        ({"num_registers": 2, "pos_embed_on_patches_only": True}, 3, {"pos_embed_on_patches_only": False}),
        ({"num_registers": 2}, 1, {"pos_embed_on_registers": False}),
        ({"pos_embed": "sincos2d"}, 1, {"pos_embed": "learned"}),
        ({"pos_embed": "none"}, 1, {"pos_embed": "learned"}),
        ({"distilled": True}, 2, {}),
        ({"fc_norm": True}, 1, {"fc_norm": False}),
    ],
    ids=str,
)
def test_positions_and_norms_in_other_places_give_the_same_numbers(
    before: dict[str, Any], covered: int, after: dict[str, Any], exportable: Exportable
) -> None:
    trained = exportable(**before)
    names = ("image_size", "patch_size", "num_classes", "dim", "depth", "heads")
    other = VisionTransformer(**{name: trained.arguments[name] for name in names} | before | after).eval()
    other.load_state_dict(network_tensors(trained, covered=covered))
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(other(images), trained.network(images), atol=1e-6, rtol=1e-6)


def test_without_a_number_of_tokens_nothing_is_moved(exportable: Exportable) -> None:
    trained = exportable(num_registers=2)
    found, state = network_tensors(trained, covered=None), trained.network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert "pos_embed" not in network_tensors(exportable(pos_embed="none"), covered=None)


def test_scales_of_one_are_for_every_block(exportable: Exportable) -> None:
    scales = unit_scales(exportable().arguments)
    assert set(scales) == {f"blocks.{i}.ls{n}.gamma" for i in (0, 1) for n in (1, 2)}
    assert all(torch.equal(gamma, torch.ones(32)) for gamma in scales.values())
