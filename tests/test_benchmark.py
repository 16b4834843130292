"""`python src/benchmark.py` in this process, on the smallest network: what it writes, and what it refuses."""

import csv
import json
import sys
from pathlib import Path

import pytest

import benchmark

TINY = ["rounds=1", "seconds=0", "networks.sizes=[mini]", "networks.batches=[1]"]


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *overrides])
    benchmark.main()


def test_chosen_parts_are_measured_into_the_run_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = ["networks.tasks=[inference]", "networks.precisions=[float32]", "networks.peers=[timm]"]
    run(monkeypatch, tmp_path, "parts=[networks]", *TINY, *chosen, "hydra.run.dir=mine")
    found = json.loads((tmp_path / "mine" / "results.json").read_text())
    assert (found["status"], found["cases"], found["goals reached"] + found["goals missed"]) == ("finished", 1, 2)
    with (tmp_path / "mine" / "benchmark.csv").open() as lines:
        names = [row["contender"] for row in csv.DictReader(lines)]
    assert names == ["vitlab", "timm", "matrix product"]
    assert {"benchmark.md", "networks.png"} <= {file.name for file in (tmp_path / "mine").iterdir()}


def test_bad_settings_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, tmp_path, "parts=[networks]", "rounds=0", "networks.sizes=[b17]")
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert "2 problems in the configuration; nothing was started." in errors
    assert "rounds=0 must be at least 1" in errors
    assert list(tmp_path.iterdir()) == []
