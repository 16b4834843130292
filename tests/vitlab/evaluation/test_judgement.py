"""Numbers per image and per class are those of scikit-learn, and an undefined one is none."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch.nn import functional as F

from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.source import Source, Split
from vitlab.evaluation import judgement
from vitlab.evaluation.judgement import class_pairs, class_scores, image_columns, image_rows, write_judgement
from vitlab.models.vit import VisionTransformer

NAMES = ("=cmd|' /C calc'", "<script>alert(1)</script>", "$\\frac{1}{$", "None", "猫", "a\nb", "seventh", "empty")


def split(labels: torch.Tensor) -> Split:
    generator = torch.Generator().manual_seed(0)
    return Split(torch.randint(256, (len(labels), 3, 6, 8), generator=generator, dtype=torch.uint8), labels)


@pytest.fixture(scope="module")
def data() -> DataModule:
    """A set in memory whose names are hostile, and whose last class has no test images."""
    labels = torch.arange(160) % 8
    parts = {"train": split(labels), "val": split(labels), "test": split(torch.arange(150) % 7)}
    source = Source("made-up", NAMES, 3, (0.5,) * 3, (0.25,) * 3, None, **parts)  # type: ignore[arg-type]
    settings: dict[str, Any] = {"augment": Augment(), "image_size": (6, 8), "batch_size": 16, "seed": 0}
    module = DataModule(source=lambda: source, **settings)
    module.setup()
    return module


def random_rows(data: DataModule, *, wrong: float = 1.0, temperature: float | None = None) -> torch.Tensor:
    labels = data.split("test").labels
    logits = wrong * torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(1)) + F.one_hot(labels, 8)
    logits[:, 6] -= 100  # a class that is never predicted
    return image_rows(logits, labels, temperature)


def test_a_row_has_the_scores_of_its_image() -> None:
    logits, labels = torch.randn(64, 9), torch.randint(9, (64,))
    rows, tempered = image_rows(logits, labels), image_rows(logits, labels, 2.0)
    assert torch.equal(tempered[:, :6], rows)
    assert torch.equal(tempered[:, 6:], image_rows(logits / 2, labels))
    images = image_columns(rows)
    probabilities = logits.softmax(dim=1)
    assert images["loss"].mean() == pytest.approx(float(F.cross_entropy(logits, labels)))
    brier = sum(((probabilities[:, k] - (labels == k).float()) ** 2).mean() for k in range(9))
    assert images["brier"].mean() == pytest.approx(float(brier))
    assert images["probability"] == pytest.approx(probabilities.amax(dim=1).numpy())
    assert images["correct"].tolist() == (logits.argmax(dim=1) == labels).tolist()
    assert (
        images["top5"].mean()
        == (logits.argsort(dim=1, descending=True)[:, :5] == labels[:, None]).any(1).float().mean()
    )


def test_scores_of_classes_are_those_of_scikit_learn_and_undefined_ones_are_none(data: DataModule) -> None:
    images = image_columns(random_rows(data))
    label, prediction = images["label"], images["prediction"]
    found = class_scores(label, prediction, 8)
    settings: Any = {"labels": range(8), "zero_division": np.nan}
    precision, recall, f1, support = precision_recall_fscore_support(label, prediction, **settings)
    np.testing.assert_allclose(found["precision"], precision)
    np.testing.assert_allclose(found["recall"], recall)
    np.testing.assert_allclose(found["f1"][:7], f1[:7])
    assert found["support"].tolist() == support.tolist()
    assert np.isnan(found["precision"][6]), "never predicted"
    assert np.isnan([found["recall"][7], found["f1"][7]]).all(), "without images"
    counts = confusion_matrix(label, prediction, labels=range(8))
    pairs = {(i, j): len(index) for i, j, index in class_pairs(images, NAMES)}
    assert pairs == {(NAMES[i], NAMES[j]): counts[i, j] for i, j in zip(*np.nonzero(counts), strict=True)}
    assert [*pairs.values()] == sorted(pairs.values(), reverse=True)


def test_an_interval_covers_the_mean_about_as_often_as_it_says_and_is_the_same_each_time() -> None:
    generator, covered = np.random.default_rng(1), 0
    for _ in range(200):
        values = generator.random(60) < 0.7
        low, high = judgement.bootstrap(lambda index, own=values: {"acc": own[index].mean()}, 60)["acc"]  # type: ignore[misc]
        covered += low <= 0.7 <= high
    assert 0.88 < covered / 200 < 0.99
    again = judgement.bootstrap(lambda index: {"acc": values[index].mean()}, 60)["acc"]
    assert again == [low, high]


@pytest.fixture(scope="module")
def written(data: DataModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judgement") / "best-test"
    data.tested = "test"
    rows, about = random_rows(data, temperature=2.0), {"split": "test", "temperature": 2.0}
    write_judgement(folder, rows, data, about=about, raw=random_rows(data, wrong=2.0))
    return folder


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return [*csv.DictReader(lines)]


def test_all_tables_are_complete_and_hold_no_formula(written: Path, data: DataModule) -> None:
    images = read(written / "images.csv")
    assert [int(line["index"]) for line in images] == [*range(150)]
    assert sum(line["correct"] == "True" for line in images) == sum(
        line["label"] == line["prediction"] for line in images
    )
    assert images[0]["label"] == "'=cmd|' /C calc'"
    classes = read(written / "classes.csv")
    assert len(classes) == 8
    assert (classes[7]["recall"], classes[7]["f1"], classes[7]["support"]) == ("", "", "0"), "not 0"
    assert classes[6]["precision"] == ""
    assert sum(int(line["images"]) for line in read(written / "confusion.csv")) == 150


def test_the_numbers_of_averages_raw_weights_and_temperature_are_next_to_each_other(written: Path) -> None:
    found = json.loads((written / "judgement.json").read_text())
    scores = found["scores"]
    assert [*scores] == ["predictions", "raw", "tempered"]
    assert scores["predictions"]["acc"][0] == scores["tempered"]["acc"][0] != scores["raw"]["acc"][0]
    assert scores["predictions"]["loss"][0] != scores["tempered"]["loss"][0]
    for name, values in scores["predictions"].items():
        assert len(values) == (1 if "ece" in name else 3)
        assert values[0] == sorted(values)[len(values) // 2], "within its interval"
    assert found["bootstrap"] == "95 % percentile bootstrap, 1,000 resamples of the images, seed 0"
    assert sum(bin[0] for bin in found["bins"]["predictions"]) == found["images"] == 150


def test_pictures_of_all_kinds_are_drawn_whatever_the_names_hold(written: Path) -> None:
    for name in ("confusion", "reliability", "errors", "hits", "pairs"):
        with Image.open(written / f"{name}.png") as image:
            assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 2, f"{name} is blank"


def test_losses_that_are_no_numbers_are_none(data: DataModule, tmp_path: Path) -> None:
    rows = random_rows(data)
    rows[3, 1:4] = float("nan")
    data.tested = "test"
    scores = write_judgement(tmp_path, rows, data, about={"split": "test"})["scores"]["predictions"]
    assert scores["loss"] == [None] * 3
    assert scores["ece"] == [None]
    assert scores["acc"][0] > 0


def test_the_command_that_explains_errors_is_for_networks_with_attention(data: DataModule, tmp_path: Path) -> None:
    data.tested = "test"
    network, about = (
        VisionTransformer(image_size=8, patch_size=4, dim=8, depth=1, heads=1),
        {"run": "a", "split": "test"},
    )
    for kind, expected in ((network, True), (network.head, False)):
        written = write_judgement(tmp_path, random_rows(data, wrong=2.0), data, about=about, network=kind)
        assert ("why" in written) is expected
