"""`python src/doctor.py` examines a configuration of train.py, tries changes, and leaves a report."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import doctor

Examined = Callable[..., Any]


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Examined]:
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


@pytest.mark.filterwarnings("ignore:.*epoch_id.*")
def test_a_visit_leaves_numbers_advice_and_a_picture_and_no_run(examined: Examined, tmp_path: Path) -> None:
    found = examined("changes=[num_workers,batch_size,log_every_n_steps]", "workers=[1]", "trace=true")
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in found["shares"].values())
    assert sum(found["parts_ms"].values()) == pytest.approx(found["step_ms"])
    for number in (found["images_per_second"], found["mfu"], *found["epoch_seconds"].values()):
        assert math.isfinite(number)
        assert number > 0
    changes = ["data.num_workers=1", "batch_size=128", "trainer.log_every_n_steps=50"]
    assert [trial["change"] for trial in found["trials"]][:3] == changes
    assert all(trial["predicted"] > 0 and trial["measured"] > 0 for trial in found["trials"])
    assert "holds it back" in found["advice"][0]
    with Image.open(tmp_path / "out" / "figures" / "doctor.png") as picture:
        assert min(picture.size) > 300
    assert list((tmp_path / "out" / "trace").rglob("*.json*")), "a Chrome trace was asked for"
    log = (tmp_path / "out" / "doctor.log").read_text()
    assert "as configured: " in log
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["status"], results["bottleneck"]) == ("finished", found["bottleneck"])
    assert not {file.name for file in (tmp_path / "out").iterdir()} & {"checkpoints", "wandb", "metrics.csv", "smaller"}
    assert not (tmp_path / "runs").exists()


def test_what_the_doctor_can_not_look_at_is_told_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = ["trainer.devices=2", "steps=0", "workers=[0,-1]"]
    monkeypatch.setattr(sys, "argv", ["doctor.py", "trainer.accelerator=cpu", *wrong])
    with pytest.raises(SystemExit):
        doctor.main()
    told = capsys.readouterr().err
    assert "steps=0 must be at least 1" in told
    assert "workers=[0, -1]: -1 is not a number of processes" in told
    assert "use trainer.devices=1 trainer.num_nodes=1 batch_size=32, the share of one" in told
    assert list(tmp_path.iterdir()) == []
