"""`python src/predict.py` writes the network's probabilities of all images, and names those that can't be read."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

import image_fixtures
import predict
from conftest import Exportable, Program
from vitlab.evaluation.trained_model import load_model
from vitlab.models.vit import VisionTransformer
from vitlab.training import progress_bar

Predict = Callable[..., Path]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve images of several kinds, two of which can't be read, and one whose name is a formula."""
    folder = image_fixtures.draw(tmp_path / "drawn") / "train" / "digit 0"
    for number, file in enumerate(sorted(folder.glob("*"))):
        if number >= 9:
            file.unlink()
    image = Image.effect_noise((40, 30), 60)
    image.save(folder / "=1+1.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.gif")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "=1+1.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Predict]:
    """Runs the program in this process: run, images, overrides -> the folder of its results."""

    def run(source: Path | str, images: Path | str, *overrides: str, out: str = "out") -> Path:
        quiet = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "num_workers=0"]
        place = [f"run={source}", f"images='{images}'", f"hydra.run.dir={tmp_path / out}"]
        monkeypatch.setattr(sys, "argv", ["predict.py", *place, *quiet, *overrides])
        predict.main()
        return tmp_path / out

    yield run
    torch.use_deterministic_algorithms(False)


def test_each_image_has_a_line_with_its_classes_or_an_error(
    images: Path, predicted: Predict, exportable: Exportable
) -> None:
    run = exportable(crop_fraction=0.9).weights.run
    out = predicted(run, images, "top=3", "embed=true", "batch_size=5")
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    paths = sorted(str(file) for file in images.iterdir() if file.suffix != ".txt")
    assert [row["path"] for row in rows] == paths
    broken = {Path(row["path"]).name: row["error"] for row in rows if "error" in row}
    assert broken.keys() == {"empty.jpg", "cut.png"}
    assert broken["empty.jpg"] == "can't be decoded (the file is empty)"
    model = load_model(run)
    readable = [row for row in rows if "error" not in row]
    expected = model.predict([row["path"] for row in readable])
    for row, best in zip(readable, expected.top(3), strict=True):
        assert row["classes"] == [name for name, _ in best]
        assert row["probabilities"] == pytest.approx([value for _, value in best], abs=2e-6)
    features = np.load(out / "embeddings.npy")
    assert [bool(np.isnan(line).all()) for line in features] == ["error" in row for row in rows]
    torch.testing.assert_close(
        torch.from_numpy(features[~np.isnan(features[:, 0])]), model.embed([row["path"] for row in readable])
    )
    with (out / "predictions.csv").open(newline="") as file:
        header, first, *_ = csv.reader(file)
    assert header == [*("path", "class1", "probability1", "class2", "probability2", "class3", "probability3", "error")]
    assert first[:2] == [paths[0], rows[0]["classes"][0]]
    results = json.loads((out / "results.json").read_text())
    assert (results["images"], results["unreadable"], results["status"]) == (len(paths), 2, "finished")
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 500


def test_an_exported_graph_predicts_as_the_run(
    images: Path, predicted: Predict, exportable: Exportable, tmp_path: Path
) -> None:
    from vitlab.export import graph

    trained = exportable()
    graph.write_onnx(trained, tmp_path, fold=False)
    runs = [predicted(s, images, out=out) for s, out in ((trained.weights.run, "a"), (tmp_path / "model.onnx", "b"))]
    ours, theirs = ([json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()] for out in runs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.get("probabilities") == pytest.approx(other.get("probabilities"), abs=1e-4)


def test_a_file_a_pattern_and_a_list_are_images_too(images: Path, predicted: Predict, exportable: Exportable) -> None:
    run = exportable().weights.run
    for number, (given, count) in enumerate([(images / "cmyk.jpg", 1), (images / "c*.jpg", 1), (images / "*.gif", 1)]):
        out = predicted(run, given, out=str(number))
        assert len((out / "predictions.jsonl").read_text().splitlines()) == count


def test_a_pipe_gets_lines_with_the_images_done_and_the_remaining_time(
    images: Path, predicted: Predict, exportable: Exportable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_bar, "LINES", 0.0)
    out = predicted(exportable().weights.run, images, "trainer.enable_progress_bar=true", "batch_size=2")
    text = (out / "predict.log").read_text()
    count = len((out / "predictions.jsonl").read_text().splitlines())
    assert f"2 of {count} images   batch 1 of {-(-count // 2)}   " in text
    assert f"{count} of {count} images   batch {-(-count // 2)} of {-(-count // 2)}   0:00:00 left" in text


def test_mistakes_are_reported_before_the_start(
    predicted: Predict, images: Path, exportable: Exportable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = exportable().weights.run
    (tmp_path / "empty").mkdir()
    for source, given, overrides, message in (
        ("nowhere", images, [], "run=nowhere doesn't exist; name a run, an export, an ONNX file"),
        (run, tmp_path / "empty", [], "empty is no image, and no folder or pattern with images"),
        (run, tmp_path / "x*.png", [], "x*.png is no image, and no folder or pattern with images"),
        (run, images, ["checkpoint=third"], "has no third.ckpt"),
        (run, images, ["top=0"], "top=0 must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            predicted(source, given, *overrides)
        assert message in capsys.readouterr().err


def test_weights_without_a_head_give_features_in_any_precision(
    images: Path, predicted: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = VisionTransformer(image_size=16, patch_size=4, num_classes=0, dim=64, depth=1, heads=1)
    save_file(network.state_dict(), file := tmp_path / "vit.safetensors")
    features = {}
    for precision in ("32-true", "bf16-true"):
        out = predicted(file, images, "embed=true", f"trainer.precision={precision}", out=precision)
        features[precision] = torch.from_numpy(np.load(out / "embeddings.npy"))
    exact, rounded = features.values()
    assert exact.shape == (14, 64)
    readable = ~exact[:, 0].isnan()
    assert not torch.equal(exact[readable], rounded[readable]), "bfloat16 rounds"
    assert F.cosine_similarity(exact[readable], rounded[readable]).min() > 0.98
    with pytest.raises(SystemExit):
        predicted(file, images)
    assert "has no head, so there are no classes to predict; set embed=true" in capsys.readouterr().err


@pytest.mark.long
def test_one_two_and_three_processes_write_the_same_files(
    images: Path, program: Program, exportable: Exportable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = exportable().weights.run
    place = [f"run={run}", f"images='{images}'", "embed=true", "batch_size=3", "trainer.accelerator=cpu"]
    for devices in (1, 2, 3):
        program("predict", *place, f"trainer.devices={devices}", f"hydra.run.dir={devices}", cwd=tmp_path)
    for name in ("predictions.csv", "predictions.jsonl", "embeddings.npy"):
        content: set[Any] = {(tmp_path / devices / name).read_bytes() for devices in ("1", "2", "3")}
        assert len(content) == 1, name
    program("predict", *place, "batch_size=99", "trainer.devices=2", "hydra.run.dir=few", cwd=tmp_path)
    lines = [(tmp_path / devices / "predictions.csv").read_text().count("\n") for devices in ("1", "few")]
    assert lines[0] == lines[1], "one of two devices has no batch"
