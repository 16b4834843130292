"""`python src/probe.py` measures any weights on any data, and finds the features that another probe has kept."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import parity
import probe
from vitlab.data.sets.digits import digits
from vitlab.models.vit import VisionTransformer

Probed = Callable[..., Any]


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Probed]:
    """Runs the program in this process: overrides -> its results."""

    def run(*overrides: str) -> Any:
        quiet = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "hydra.run.dir=out"]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["probe.py", *quiet, *overrides])
        probe.main()
        return json.loads((tmp_path / "out" / "results.json").read_text())

    yield run
    torch.use_deterministic_algorithms(False)


def test_weights_that_are_no_run_s_are_measured_and_their_features_found_again(probed: Probed, tmp_path: Path) -> None:
    model = ["model=vit_mini", "model.depth=1"]
    first = probed(*model, "probe.features=mean")
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs" / "features").iterdir()}
    again = probed(*model, "probe.features=mean", "probe.k=1", "batch_size=7")
    assert (first["status"], first["test/count"], first["width"]) == ("finished", 360, 64)
    assert first["test/knn_acc"] > 0.3, "an untrained network sees some of what is alike; chance is 0.1"
    assert again["test/knn_acc"] != first["test/knn_acc"]
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs" / "features").iterdir()} == kept
    assert len(kept) == 3
    assert probed(*model, "seed=1", "probe.features=mean")["test/knn_acc"] != first["test/knn_acc"], "other weights"


def test_the_head_of_weights_that_are_no_run_s_is_scored_where_its_classes_are_the_data_s(
    probed: Probed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    network = VisionTransformer(image_size=8, patch_size=2, in_channels=1, dim=64, depth=1, heads=1, num_classes=10)
    parity.fill(network.eval())
    save_file(network.state_dict(), tmp_path / "ten.safetensors")
    found = probed("model.weights=ten.safetensors", "probe=head", "data.mean=[0.25]", "data.std=[0.5]")
    images, labels = digits().test.images, digits().test.labels
    assert images is not None
    with torch.no_grad():
        right = network((images.float() / 255 - 0.25) / 0.5).argmax(dim=1) == labels
    assert (found["status"], found["test/count"], found["split"]) == ("finished", 360, "test")
    assert found["test/correct"] == int(right.sum())
    assert found["test/acc"] == pytest.approx(found["test/correct"] / 360)

    other = {k: v[:7] if k.startswith("head.") else v for k, v in network.state_dict().items()}
    save_file(other, tmp_path / "seven.safetensors")
    with pytest.raises(SystemExit):
        probed("model.weights=seven.safetensors", "probe=head", "hydra.run.dir=other")
    assert "would get a new one: 10 classes, and 7 in the weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "model.weights"),
        (["model=vit_mini", "probe=head"], "there are no weights; set model.weights=SOURCE"),
        (["model=vit_mini", "optimizer.lr=1"], "optimizer"),
        (["model=vit_mini", "model.class_token=false", "model.pool=avg", "probe.features=cls"], "probe.features=cls"),
        (["model=vit_mini", "split=train"], "split=train is not one of 'val', 'test'"),
        (["model=vit_mini", "model.dmi=3"], "model.dmi=3: there is no such setting; did you mean 'dim'?"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    probed: Probed, overrides: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        probed(*overrides)
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
