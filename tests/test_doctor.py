"""`python src/doctor.py` measures a configuration of train.py, tries changes, and writes a report."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import doctor

Diagnose = Callable[..., Any]


@pytest.fixture
def diagnose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Diagnose]:
    """Runs the program in this process: overrides -> `doctor.json`."""

    def run(*overrides: str) -> Any:
        quick = [
            "model.dim=16",
            "model.depth=1",
            "model.heads=2",
            "steps=2",
            "warmup=1",
            "rounds=1",
            "hydra.run.dir=out",
        ]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["doctor.py", "trainer.accelerator=cpu", *quick, *overrides])
        doctor.main()
        return json.loads((tmp_path / "out" / "doctor.json").read_text())

    yield run
    torch.use_deterministic_algorithms(False)


def test_a_diagnosis_writes_numbers_and_advice_and_no_run(diagnose: Diagnose, tmp_path: Path) -> None:
    report = diagnose("changes=[num_workers,batch_size,log_every_n_steps]", "workers=[1]")
    assert sum(report["shares"].values()) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in report["shares"].values())
    assert sum(report["parts_ms"].values()) == pytest.approx(report["step_ms"])
    for number in (report["images_per_second"], report["mfu"]):
        assert math.isfinite(number)
        assert number > 0
    changes = ["data.num_workers=1", "batch_size=128", "trainer.log_every_n_steps=50"]
    assert [trial["change"] for trial in report["trials"]][:3] == changes
    assert all(trial["gain"] > 0 and len(trial["gains"]) == 1 for trial in report["trials"])
    assert "is the bottleneck" in report["advice"][0]
    log = (tmp_path / "out" / "doctor.log").read_text()
    assert "as configured: " in log
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["status"], results["bottleneck"]) == ("finished", report["bottleneck"])
    assert not {file.name for file in (tmp_path / "out").iterdir()} & {"checkpoints", "wandb", "metrics.csv"}
    assert not (tmp_path / "runs").exists()


def test_settings_that_the_doctor_can_not_measure_are_refused_before_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = ["trainer.devices=2", "steps=0", "workers=[0,-1]"]
    monkeypatch.setattr(sys, "argv", ["doctor.py", "trainer.accelerator=cpu", *wrong])
    with pytest.raises(SystemExit):
        doctor.main()
    errors = capsys.readouterr().err
    assert "steps=0 must be at least 1" in errors
    assert "workers=[0, -1] must be at least 0" in errors
    assert "use trainer.devices=1 trainer.num_nodes=1 batch_size=32, the share of one" in errors
    assert list(tmp_path.iterdir()) == []
