"""A run, its exports and other weights give the same model: probabilities, features, attention."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

import vitlab
from conftest import Exportable
from vitlab.data.dataset import center_crop
from vitlab.evaluation.features import Extractor
from vitlab.evaluation.trained_model import load_model
from vitlab.export import export
from vitlab.export.export import textured_image
from vitlab.models.vit import VisionTransformer


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Images of odd sizes."""
    folder = tmp_path / "images"
    folder.mkdir()
    paths = []
    for seed, (height, width) in enumerate([(20, 31), (64, 40), (16, 16), (50, 120), (33, 33)]):
        pixels = textured_image(3, height, width, seed=seed).permute(1, 2, 0).numpy()
        paths.append(folder / f"{seed}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.mark.parametrize("crop_fraction", [None, 0.8])
def test_probabilities_are_those_of_the_network_on_evaluations_input(
    crop_fraction: float | None, files: list[Path], exportable: Exportable
) -> None:
    trained = exportable(crop_fraction=crop_fraction)
    model = vitlab.load(str(trained.weights.run))
    pixels = [torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1) for file in files]
    mode = v2.InterpolationMode.BICUBIC
    cropped = [center_crop(image, (16, 16), crop_fraction, mode) if crop_fraction else image for image in pixels]
    logits = trained.network(torch.cat([trained.prepare()(image[None]) for image in cropped]))
    predicted = model.predict(files, batch_size=2)
    torch.testing.assert_close(predicted.probabilities, logits.softmax(1))
    assert predicted.classes == trained.classes
    best, second = predicted.top(2)[0]
    assert best == (trained.classes[int(logits[0].argmax())], pytest.approx(float(logits[0].softmax(0).max())))
    assert second[1] < best[1]


def test_all_kinds_of_images_give_the_same(files: list[Path], exportable: Exportable) -> None:
    model = load_model(exportable().weights.run)
    opened = [Image.open(file) for file in files]
    arrays = [np.asarray(image) for image in opened]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    expected = model.predict(files).probabilities
    nested: Any = [str(files[0]), opened[1], [arrays[2], tensors[3]], model.transform(files[4])]
    for images in (files[0].parent, opened, arrays, tensors, nested, (file for file in files)):
        torch.testing.assert_close(model.predict(images, batch_size=3).probabilities, expected)
    same = torch.stack([tensors[2]] * 5)
    torch.testing.assert_close(model.predict(same, batch_size=2).probabilities, expected[2].expand(5, -1))
    torch.testing.assert_close(model.predict([same.movedim(1, -1).numpy()]).probabilities, expected[2].expand(5, -1))


def test_features_are_the_heads_input_and_attention_is_that_of_each_layer(
    files: list[Path], exportable: Exportable
) -> None:
    trained = exportable()
    model = load_model(trained.weights.run)
    inputs = torch.stack([model.transform(file) for file in files])
    torch.testing.assert_close(
        F.linear(model.embed(files), *trained.network.head.parameters()), trained.network(inputs)
    )
    torch.testing.assert_close(model.embed(files, kind="mean"), Extractor(trained.network, "mean")(inputs))
    maps = model.attention(files[1])
    assert maps.shape == (2, 2, 17, 17)
    torch.testing.assert_close(maps[1], trained.network.attention_maps(inputs[1:2])[1][0])


@pytest.mark.parametrize(
    ("name", "fold"), [("safetensors", False), ("timm", False), ("hf", False), ("onnx", False), ("onnx", True)]
)
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_an_export_predicts_as_its_run(
    name: str, fold: bool, loss: str, files: list[Path], exportable: Exportable, tmp_path: Path
) -> None:
    trained = exportable(loss=loss)
    export.export_network(trained, name, tmp_path / "out", fold=fold, tolerance=1e-3, license=None)
    model, expected = load_model(tmp_path / "out"), load_model(trained.weights.run)
    assert model.classes == trained.classes
    if name == "timm" and loss == "sigmoid":  # timm's configuration has no loss
        assert model.loss == "softmax"
        return
    torch.testing.assert_close(
        model.predict(files).probabilities, expected.predict(files).probabilities, atol=1e-4, rtol=1e-3
    )


def test_the_temperature_of_an_evaluation_divides_the_logits(files: list[Path], exportable: Exportable) -> None:
    trained = exportable()
    before = load_model(trained.weights.run).predict(files).probabilities
    file = trained.weights.run / "evaluation" / "temperature.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"temperature": 2.0, "images": 10}))
    after = load_model(trained.weights.run).predict(files).probabilities
    torch.testing.assert_close(after, (before.log() / 2).softmax(1))


@pytest.mark.parametrize("name", ["safetensors", "timm", "hf"])
def test_an_export_keeps_the_temperature(name: str, exportable: Exportable, tmp_path: Path) -> None:
    trained = replace(exportable(), temperature=2.5)
    export.export_network(trained, name, tmp_path / "out", fold=False, tolerance=1e-3, license=None)
    assert load_model(tmp_path / "out").temperature == 2.5


def test_averages_and_raw_weights_are_parts(files: list[Path], exportable: Exportable) -> None:
    run = exportable(averaged=True).weights.run
    averaged, raw = (load_model(run, part=part).network.state_dict() for part in (None, "raw"))
    torch.testing.assert_close(averaged["head.weight"] / 10, raw["head.weight"])


def test_a_gray_network_takes_images_with_colors_and_a_color_network_gray_ones(exportable: Exportable) -> None:
    gray = load_model(exportable(in_channels=1).weights.run)
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert torch.equal(gray.transform(np.stack([ramp] * 3, axis=-1)), gray.transform(ramp)), "equal colors are gray"
    colors = textured_image(3, 16, 16, seed=1)
    converted = Image.fromarray(colors.permute(1, 2, 0).numpy()).convert("L")
    torch.testing.assert_close(gray.transform(colors), gray.transform(np.asarray(converted)))


def cached(monkeypatch: pytest.MonkeyPatch, cache: Path, name: str, network: nn.Module) -> None:
    """Put weights where the Hub's client keeps those of timm's `name`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    folder = cache / f"models--timm--{name}"
    (snapshot := folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    save_file(network.state_dict(), snapshot / "model.safetensors")


@pytest.mark.parametrize("name", ["test_vit.r160_in1k", "test_resnet.r160_in1k"])
def test_timms_networks_predict_as_in_timm_with_imagenets_classes(
    name: str, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = timm.create_model(name.partition(".")[0]).eval()
    cached(monkeypatch, tmp_path / "hub", name, network)
    model = load_model(f"timm:{name}")
    assert model.classes is not None
    assert (len(model.classes), model.classes[0]) == (1000, "tench, Tinca tinca")
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    assert (model.mean, model.std, model.crop_fraction, model.image_size) == (cfg.mean, cfg.std, 0.95, (160, 160))
    inputs = torch.stack([model.transform(file) for file in files])
    torch.testing.assert_close(model.predict(files).probabilities, network(inputs).softmax(1), atol=1e-6, rtol=1e-3)
    data: Any = timm.data  # untyped
    theirs = data.create_transform(**data.resolve_model_data_config(network), is_training=False)
    assert (theirs(Image.open(files[3])) - inputs[3]).abs().mean() < 0.02, "rounded"


def test_weights_without_a_head_have_features_and_no_predictions(files: list[Path], tmp_path: Path) -> None:
    network = VisionTransformer(image_size=16, patch_size=4, num_classes=0, dim=64, depth=1, heads=1).eval()
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    model = load_model(tmp_path / "vit.safetensors")
    assert model.embed(files).shape == (5, 64)
    with pytest.raises(ValueError, match="have no head, so there are no classes to predict; use embed"):
        model.predict(files)


def test_what_is_no_image_is_refused_with_its_kind(exportable: Exportable, tmp_path: Path) -> None:
    model = load_model(exportable().weights.run)
    with pytest.raises(ValueError, match=r"an image of int64 \[3, 8, 8\]; pass uint8"):
        model.predict(torch.zeros(3, 8, 8, dtype=torch.long))
    with pytest.raises(ValueError, match=r"must be the network's input, \[3, 16, 16\]: \[3, 8, 8\]"):
        model.predict(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"an image of 2 channels; the network takes 3"):
        model.predict(torch.zeros(2, 8, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match="int is no image"):
        model.predict(3)
    with pytest.raises(ValueError, match="there are no images"):
        model.predict([])
    with pytest.raises(ValueError, match=r"no file or folder .*nothing"):
        load_model(tmp_path / "nothing")
