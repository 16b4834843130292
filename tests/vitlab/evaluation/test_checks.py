"""Mistakes in the settings of an evaluation are reported with value, knob and remedy."""

from pathlib import Path

import pytest

from vitlab.config.view import ConfigView
from vitlab.evaluation.checks import evaluation_problems
from vitlab.runs.folder import write_config


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `run`, as a run leaves it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_config(folder := Path("run"), {"logger": {}})
    return folder


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"run": "gone", "checkpoint": "best"}, "run=gone is not a run folder: it has no config.yaml"),
        ({"run": "run", "checkpoint": "best"}, "checkpoint=best: run/checkpoints has no best.ckpt"),
    ],
)
@pytest.mark.usefixtures("run")
def test_a_mistake_is_reported(settings: dict[str, str], problem: str) -> None:
    (line,) = evaluation_problems(ConfigView(settings, set()))
    assert problem in line
