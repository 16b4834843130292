"""Scores on other test sets are those of timm's protocols, on made-up images in the layout of each set."""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image
from timm.data.real_labels import RealLabelsImagenet

from vitlab.evaluation import judgement
from vitlab.evaluation.test_sets import build_test
from vitlab.evaluation.trained_model import TrainedModel
from vitlab.models.vit import VisionTransformer
from vitlab.training.classifier import Classifier

LISTS = files("timm.data._info")
IDS = (LISTS / "imagenet_synsets.txt").read_text().split()


def trained(classes: int = 1000, names: tuple[str, ...] | None = None, channels: int = 3) -> TrainedModel:
    """A network with random weights large enough that its predictions vary."""
    torch.manual_seed(0)
    options: Any = {"image_size": 8, "patch_size": 4, "dim": 32, "depth": 1, "heads": 2, "in_channels": channels}
    network = VisionTransformer(num_classes=classes, **options)
    torch.nn.init.normal_(network.get_parameter("head.weight"))
    half = (0.5,) * channels
    return TrainedModel(
        network=network.eval(), classes=names, image_size=(8, 8), mean=half, std=half, crop_fraction=1.0
    )


def draw(folder: Path, *paths: str, gray: bool = False) -> Path:
    """Images of 8 x 8 pixels as PNG, whatever the name: of the exact pixels."""
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        pixels = pixels[..., :1].repeat(3, axis=2) if gray else pixels
        Image.fromarray(pixels).save(folder / path, "PNG")
    return folder


def logits_of(model: TrainedModel, folder: Path, paths: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([model.network(model.transform(folder / path)[None])[0] for path in paths])


Judge = Callable[..., tuple[dict[str, Any], tuple[str, ...]]]


@pytest.fixture
def judged(make_trainer: Callable[..., Trainer], tmp_path: Path) -> Judge:
    """A network, a folder, the kind of a set and a mapping -> columns of the images, and the classes."""

    def judge(model: TrainedModel, folder: Path, kind: str = "folders", class_map: str | None = None) -> Any:
        network, data, accepted = build_test(model, folder, kind, class_map, batch_size=4, num_workers=0, seed=0)
        module = Classifier(network, num_classes=data.num_classes)
        module.accepted = accepted
        rows = judgement.collect_rows(trainer := make_trainer(), module, data, tmp_path)
        assert rows is not None
        images = judgement.image_columns(rows)
        for name, column in {"acc": "correct", "acc5": "top5", "loss": "loss"}.items():
            if name != "acc5" or data.num_classes > 5:
                assert images[column].mean() == pytest.approx(float(trainer.callback_metrics[f"test/{name}"]), rel=1e-5)
        if class_map:
            found = judgement.write_judgement(tmp_path / "out", rows, data, about={})
            assert found["scores"]["predictions"]["acc"][0] == images["correct"].mean()
        names = data.source.classes
        return images | {key: [names[k] for k in images[key]] for key in ("label", "prediction")}, names

    return judge


@pytest.mark.parametrize("kind", ["imagenet-a", "imagenet-r"])
def test_of_imagenet_a_and_r_200_classes_compete(judged: Judge, tmp_path: Path, kind: str) -> None:
    short = kind.replace("-", "_")
    indices = [int(i) for i in (LISTS / f"{short}_indices.txt").read_text().split()]
    ids = (LISTS / f"{short}_synsets.txt").read_text().split()
    paths = [f"{ids[k]}/{i}_0.{i}_name.jpg" for k in (0, 7, 31, 199) for i in range(6)]
    folder, model = draw(tmp_path / "images", *paths), trained()
    (folder / "README.txt").touch()
    logits = logits_of(model, folder, paths)[:, indices]  # as timm's validate.py --valid-labels
    images, names = judged(model, folder, kind)
    assert names == tuple(ids)
    assert images["prediction"] == [ids[k] for k in logits.argmax(dim=1)]
    assert images["label"] == [path.split("/")[0] for path in paths]
    labels = torch.tensor([0, 7, 31, 199]).repeat_interleave(6)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert images["loss"].mean() == pytest.approx(float(loss), rel=1e-5)
    assert images["top5"].tolist() == (logits.topk(5).indices == labels[:, None]).any(dim=1).tolist()


def test_folders_of_imagenet_v2_are_numbers_and_of_sketch_wordnet_ids(judged: Judge, tmp_path: Path) -> None:
    numbers, model = [0, 2, 10, 100, 999], trained()
    v2 = draw(tmp_path / "v2", *(f"{n}/{i}.jpeg" for n in numbers for i in range(3)))
    sketch = draw(tmp_path / "sketch", *(f"{IDS[n]}/sketch_{i}.JPEG" for n in numbers for i in range(3)))
    expected = sorted(IDS[n] for n in numbers for _ in range(3))
    for folder in (v2, sketch):
        assert sorted(judged(model, folder)[0]["label"]) == expected


def test_an_image_of_real_has_several_right_labels_or_is_left_out(judged: Judge, tmp_path: Path) -> None:
    real = json.loads((LISTS / "imagenet_real_labels.json").read_text())[:40]
    names = [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(40)]
    paths = [f"{IDS[i % 7]}/{name}" for i, name in enumerate(names)]
    folder, model = draw(tmp_path / "val", *paths), trained()
    with torch.no_grad():  # biases by which some are right
        for labels in real[1:30:3]:
            model.network.head.bias[labels[-1:]] += 25  # type: ignore[union-attr,operator,index]
    (tmp_path / "real.json").write_text(json.dumps(real))
    timm: Any = RealLabelsImagenet(names, real_json=str(tmp_path / "real.json"))  # type: ignore[no-untyped-call]
    timm.add_result(logits_of(model, folder, paths))
    images, _ = judged(model, folder, "imagenet-real")
    assert len(images["label"]) == sum(map(bool, real)) < 40
    assert 0 < images["correct"].mean() < images["top5"].mean() <= 1
    assert 100 * images["correct"].mean() == pytest.approx(timm.get_accuracy(1))
    assert 100 * images["top5"].mean() == pytest.approx(timm.get_accuracy(5))


def test_a_network_of_some_of_imagenets_classes_is_tested_on_their_images(judged: Judge, tmp_path: Path) -> None:
    few = (IDS[13], IDS[6], IDS[500])  # two of ImageNet-A's, in another order
    folder = draw(tmp_path / "a", *(f"{IDS[n]}/{i}.jpg" for n in (6, 11, 13) for i in range(3)))
    images, names = judged(trained(3, few), folder, "imagenet-a")
    assert names == (IDS[6], IDS[13])
    assert images["label"] == [IDS[6]] * 3 + [IDS[13]] * 3


def test_a_users_folders_are_mapped_and_a_gray_network_gets_the_luminance(judged: Judge, tmp_path: Path) -> None:
    model = trained(4, ("cat", "dog", "tiger", "wolf"), channels=1)
    paths = [f"{name}/{i}.png" for name in ("cat", "chien", "felines", "stones") for i in range(8)]
    folder, mapping = draw(tmp_path / "images", *paths, gray=True), tmp_path / "map.yaml"
    mapping.write_text("chien: 1\nfelines: [cat, tiger]\nstones: null\n")
    images, names = judged(model, folder, "folders", str(mapping))
    logits = logits_of(model, folder, paths[:24])
    predicted = [names[k] for k in logits.argmax(dim=1)]
    assert images["prediction"] == predicted
    better = ["cat" if row[0] > row[2] else "tiger" for row in logits[16:]]
    assert images["label"] == ["cat"] * 8 + ["dog"] * 8 + better
    right = [p in ({"cat"}, {"dog"}, {"cat", "tiger"})[i // 8] for i, p in enumerate(predicted)]
    assert images["correct"].tolist() == right


@pytest.mark.parametrize(
    ("classes", "kind", "folder", "message"),
    [
        (4, "folders", "cats", "class_map: cats=cats is no class of the network; did you mean 'cat'?"),
        (4, "imagenet-a", "cat", "has no images of the network's classes; test_set=imagenet-a needs others"),
        (1000, "imagenet-real", IDS[0], "has no images of the network's classes; test_set=imagenet-real"),
        (1000, "folders", "1000", "class_map: 1000=1000 is no class of the network"),
    ],
)
def test_a_folder_without_a_class_is_named(tmp_path: Path, classes: int, kind: str, folder: str, message: str) -> None:
    model = trained(classes, ("cat", "dog", "tiger", "wolf") if classes == 4 else None)
    with pytest.raises(ValueError, match=message):
        build_test(model, draw(tmp_path, f"{folder}/a.png"), kind, None, batch_size=4, seed=0)
