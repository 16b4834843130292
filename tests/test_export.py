"""`python src/export.py` on a trained run: other libraries get the scores of training."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import export
from conftest import Exportable
from vitlab.config.schema import ConfigView
from vitlab.data.sets.digits import digits

Exported = Callable[..., Any]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Exported:
    """Runs the program in this process: run folder, overrides -> what it recorded."""

    def run(folder: Path, *overrides: str) -> Any:
        monkeypatch.chdir(folder.parent)
        monkeypatch.setattr(sys, "argv", ["export.py", f"run={folder.name}", *overrides])
        export.main()
        name = next(o.partition("=")[2] for o in overrides if o.startswith("format="))
        return json.loads((folder / "export" / "log" / name / "results.json").read_text())

    return run


def test_bytes_into_onnx_runtime_give_the_accuracy_of_training(twins: list[Path], exported: Exported) -> None:
    found = exported(twins[0], "format=onnx", "fold=true")
    folder = twins[0] / "export" / "onnx"
    assert {file.name for file in folder.iterdir()} == {"model.onnx", "README.md", "export.json"}
    assert (found["status"], found["out"]) == ("finished", "a/export/onnx")
    assert found["largest_difference"] < 1e-5
    test = digits().test
    assert test.images is not None
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (probabilities,) = session.run(None, {"images": test.images.numpy()})
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    correct = int((probabilities.argmax(axis=1) == test.labels.numpy()).sum())
    training = json.loads((twins[0] / "results.json").read_text())
    assert correct == training["test/correct"]
    card = (folder / "README.md").read_text()
    assert f"| test | Accuracy | {100 * training['test/acc']:.2f} % |" in card
    assert f"commit {training['commit']}," in card


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["format=timm", "part=ema"], "part=ema: a/checkpoints/best.ckpt has only one set of weights"),
        (["format=timm", "checkpoint=first"], "checkpoint=first: a/checkpoints has no first.ckpt"),
        (["format=timm", "out=a/checkpoints"], "out=a/checkpoints exists already"),
        (["format=timm", "tolerance=-1"], "tolerance=-1 must be at least 0"),
        (["format=tim"], "format=tim is not one of 'safetensors', 'timm', 'hf', 'onnx', 'torch_export'"),
        (["format=timm", "fold=true"], "fold=true: format=timm holds weights"),
    ],
)
def test_impossible_exports_are_refused_before_anything_is_written(
    overrides: list[str],
    problem: str,
    twins: list[Path],
    exported: Exported,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(twins[0].rglob("*"))
    with pytest.raises(SystemExit) as end:
        exported(twins[0], *overrides)
    assert end.value.code == 2
    output = capsys.readouterr().err
    assert problem in output
    assert "1 problem in the configuration" in output
    assert sorted(twins[0].rglob("*")) == before


def test_a_missing_checkpoint_is_reported_unless_its_settings_are_wrong(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"format": "timm", "run": "nowhere", "checkpoint": "best", "out": str(tmp_path / "out")}
    assert list(export.problems(ConfigView(settings, set()))) == [
        "checkpoint=best: nowhere/checkpoints has no best.ckpt"
    ]
    assert list(export.problems(ConfigView(settings, {"format"}))) == []


def test_channels_are_added_to_networks_of_gray_images_alone(exportable: Exportable, tmp_path: Path) -> None:
    for channels, count in ((1, 0), (3, 1)):
        run = str(exportable(in_channels=channels).weights.run)
        settings: dict[str, Any] = {"format": "safetensors", "run": run, "checkpoint": "best", "channels": 3}
        found = list(export.problems(ConfigView({**settings, "out": str(tmp_path / "out")}, set())))
        message = "channels=3 is for vitlab's networks of gray images, and this is none; leave it out"
        assert found == [message] * count
