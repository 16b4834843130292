"""The page of a run has its judgements, and a report that fails fails nothing else."""

import json
from pathlib import Path

import pytest
import torch

from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.digits import digits
from vitlab.evaluation import run_report
from vitlab.evaluation.judgement import image_rows, write_judgement
from vitlab.models.vit import VisionTransformer
from vitlab.runs import folder
from vitlab.runs.html_page import Page


class Run:
    """A Trainer without loggers."""

    loggers: list[object] = []  # noqa: RUF012


@pytest.fixture(scope="module")
def data() -> DataModule:
    module = DataModule(source=digits, augment=Augment(), image_size=8, batch_size=64, seed=0)
    module.setup()
    return module


def make_network() -> VisionTransformer:
    return VisionTransformer(image_size=8, patch_size=2, in_channels=1, dim=16, depth=2, heads=2, num_classes=10)


def test_a_score_is_shown_with_its_interval_or_not_at_all() -> None:
    assert run_report.format_score("acc", [0.5, 0.25, 0.75]) == "50.00 %   [25.00, 75.00]"
    assert run_report.format_score("ece", [0.5]) == "0.5000"
    assert run_report.format_score("loss", [None, 0.25, 0.75]) is None  # type: ignore[list-item]


def test_the_page_of_a_training_has_all_parts(data: DataModule, tmp_path: Path) -> None:
    folder.write_config(tmp_path, {"name": "<b>digits"})
    (tmp_path / "figures").mkdir()
    data.tested = "test"
    rows = image_rows(torch.randn(360, 10), data.split("test").labels)
    write_judgement(tmp_path / "evaluation" / "last-test", rows, data, about={"split": "test"})
    run_report.write_training_report(Run(), tmp_path, rows, make_network(), data)  # type: ignore[arg-type]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "&lt;b&gt;digits" in page
    assert [f"<h2>{name}</h2>" in page for name in ("best-test", "last-test")] == [True, True]
    assert "Attention of what the head reads" in page
    assert json.loads((tmp_path / "evaluation" / "best-test" / "judgement.json").read_text())["images"] == 360
    (tmp_path / "evaluation" / "temperature.json").write_text('{"temperature": 2.0}')
    run_report.forget_former_best(tmp_path)
    left = {str(file.relative_to(tmp_path / "evaluation")) for file in tmp_path.glob("evaluation/**/*.json")}
    assert left == {"last-test/judgement.json"}, "the others are of a former checkpoint"


def test_a_network_without_attention_has_the_other_parts(data: DataModule, tmp_path: Path) -> None:
    folder.write_config(tmp_path, {"name": "digits"})
    (tmp_path / "figures").mkdir()
    rows = image_rows(torch.randn(360, 10), data.split("test").labels)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    run_report.write_training_report(Run(), tmp_path, rows, network, data)  # type: ignore[arg-type]
    assert (tmp_path / "report" / "index.html").is_file()
    assert not (tmp_path / "figures" / "attention.png").exists()


def test_an_error_is_a_warning(
    data: DataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Page, file: Path) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Page, "write", fail)
    folder.write_config(tmp_path, {"name": "digits"})
    (tmp_path / "figures").mkdir()
    rows = image_rows(torch.randn(360, 10), data.split("test").labels)
    run_report.write_training_report(Run(), tmp_path, rows, make_network(), data)  # type: ignore[arg-type]
    assert "report: OSError: the disk is full; report=false leaves it out" in caplog.text


def test_attention_is_drawn_of_a_network_in_training_mode_and_without_class_token(
    data: DataModule, tmp_path: Path
) -> None:
    settings = {"image_size": 8, "patch_size": 4, "in_channels": 1, "dim": 16, "depth": 1, "heads": 2}
    network = VisionTransformer(**settings, num_classes=10, pool="avg", class_token=False)  # type: ignore[arg-type]
    run_report.draw_attention(network.train(), data, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
