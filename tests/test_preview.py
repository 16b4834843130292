"""`python src/preview.py` writes pictures of a step, and sends them to wandb."""

import sys
from pathlib import Path

import pytest
import torch

import preview
from conftest import Tracked


def test_pictures_are_written_and_tracked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tracked: Tracked) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["preview.py", "step=3", "count=4", "logger=wandb", "logger.wandb.mode=offline", "trainer.devices=2"]
    monkeypatch.setattr(sys, "argv", [*line, "trainer.accelerator=cpu", "hydra.run.dir=out"])
    preview.main()
    torch.use_deterministic_algorithms(False)
    pictures = {"training", "evaluation", "operations"}
    assert {file.stem for file in (tmp_path / "out").glob("*.png")} == pictures
    [(summary, _)] = tracked(tmp_path / "out")
    for name in pictures:
        assert summary["summary"][f"preview/{name}"]["count"] == 1
        [file] = (tmp_path / "out" / "wandb").glob(f"offline-run-*/files/media/images/preview/{name}*.png")
        assert file.read_bytes() == (tmp_path / "out" / f"{name}.png").read_bytes()


def test_a_step_that_training_does_not_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["preview.py", "step=999", "trainer.max_epochs=2", "trainer.accelerator=cpu"])
    with pytest.raises(SystemExit) as end:
        preview.main()
    torch.use_deterministic_algorithms(False)
    assert end.value.code == 1
    assert "step=999: this training has the steps 0 to 41; choose one of them" in capsys.readouterr().err
