"""Mistakes in the settings of the doctor and of a replay are reported with value, knob and remedy."""

from pathlib import Path

import pytest

from vitlab.config.view import ConfigView
from vitlab.diagnostics.checks import doctor_problems, replay_problems
from vitlab.runs.folder import write_config
from vitlab.training import nonfinite


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `run`, as a run leaves it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_config(folder := Path("run"), {"logger": {}})
    (folder / "captures" / "one" / "rank0").mkdir(parents=True)
    (folder / "captures" / "one" / nonfinite.INFO).touch()
    return folder


@pytest.mark.parametrize(
    ("capture", "problem"),
    [
        ("run", "it has no info.json; that run has run/captures/one"),
        ("run/captures/one", "capture=run/captures/one has no config.yaml, the configuration"),
    ],
)
@pytest.mark.usefixtures("run")
def test_a_capture_that_cannot_be_replayed_is_reported(capture: str, problem: str) -> None:
    (line,) = replay_problems(ConfigView({"capture": capture, "rank": 0}, set()))
    assert problem in line


def test_a_doctor_of_several_devices_is_refused() -> None:
    settings = {"trainer": {"devices": 2, "accelerator": "cpu", "num_nodes": 1}, "batch_size": 64}
    (line,) = doctor_problems(ConfigView(settings, set()))
    assert line.endswith("use trainer.devices=1 trainer.num_nodes=1 batch_size=32, the share of one")
