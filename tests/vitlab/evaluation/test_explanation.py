"""What is explained: a run's images or a user's, for the predicted class or another."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from conftest import Exportable
from parity import fill
from vitlab.evaluation import explanation
from vitlab.evaluation.trained_model import TrainedModel, load_model


def model(network: Any, classes: tuple[str, ...] | None = None, size: tuple[int, int] = (32, 48)) -> TrainedModel:
    half = (0.5, 0.5, 0.5)
    return TrainedModel(network=network.eval(), classes=classes, image_size=size, mean=half, std=(0.2, 0.3, 0.4))


def test_a_users_images_are_prepared_as_for_a_prediction(exportable: Exportable, tmp_path: Path) -> None:
    exportable(crop_fraction=0.9)
    subject = load_model(tmp_path / "run")
    for name, shape in (("b.png", (40, 30)), ("a.png", (16, 16)), ("c.jpg", (9, 50))):
        Image.effect_noise(shape, 90).convert("RGB").save(tmp_path / name)
    inputs, names = explanation.load_inputs(subject, "", str(tmp_path / "?.*g"), 2)
    assert names == ["a.png", "b.png"]
    torch.testing.assert_close(inputs[1], subject.transform(tmp_path / "b.png"))
    images = explanation.to_images(subject, inputs)
    assert images.dtype == torch.uint8
    torch.testing.assert_close(subject.prepare()(images), inputs, rtol=0, atol=1e-5)


def test_a_file_that_can_not_be_read_is_left_out(
    exportable: Exportable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exportable()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    subject = load_model(tmp_path / "run")
    with pytest.raises(ValueError, match="none of them can be read"):
        explanation.load_inputs(subject, "", str(tmp_path / "images"), 4)
    Image.new("RGB", (20, 20)).save(tmp_path / "images" / "good.png")
    inputs, names = explanation.load_inputs(subject, "", str(tmp_path / "images"), 4)
    assert (len(inputs), names) == (1, ["good.png"])
    assert "left out" in caplog.text
    assert "bad.png" in caplog.text


def test_a_network_without_a_head_has_attention_and_no_relevance() -> None:
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=(32, 48), depth=2, num_classes=0)
    subject, inputs = model(network), torch.randn(2, 3, 32, 48)
    found = explanation.explain(subject, inputs)
    assert set(found.maps) == {"attention", "rollout"}
    assert found.probabilities is None
    assert explanation.score_maps(subject, inputs, found, "blur") == {}


def test_the_maps_and_scores_are_of_the_class_asked_for() -> None:
    settings: dict[str, Any] = {"img_size": (32, 48), "depth": 2, "num_classes": 3}
    fill(network := timm.create_model("vit_tiny_patch16_224", pretrained=False, **settings))
    subject, inputs = model(network, ("a", "b", "c")), torch.randn(2, 3, 32, 48)
    found, other = explanation.explain(subject, inputs), explanation.explain(subject, inputs, 2)
    assert found.probabilities is not None
    torch.testing.assert_close(found.probabilities, network(inputs).softmax(dim=1).detach())
    assert torch.equal(found.targets, found.probabilities.argmax(dim=1))
    assert other.targets.tolist() == [2, 2]
    assert {name: values.shape for name, values in found.maps.items()} == dict.fromkeys(found.maps, (2, 2, 3))
    assert torch.equal(found.maps["rollout"], other.maps["rollout"])
    curves = explanation.score_maps(subject, inputs, other, "mean")
    assert list(curves) == ["attention", "rollout", "relevance", "random"]
    torch.testing.assert_close(curves["random"].deletion[:, 0], found.probabilities[:, 2])
