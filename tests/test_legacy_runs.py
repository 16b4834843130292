"""A run of version 0.0, stopped after two of four epochs, can be evaluated and resumed (`legacy_run`)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

FINISHED = {"test/correct": 107, "test/count": 360, "val/correct": 48, "steps": 84, "epochs": 4}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(Path(__file__).parent / "legacy_run", tmp_path / "run")
    return tmp_path / "run"


def test_it_is_evaluated(run: Path, program: Callable[..., str]) -> None:
    program("evaluate", "run=run", "checkpoint=last", "split=val", "trainer.accelerator=cpu", cwd=run.parent)
    results = json.loads((run / "evaluation" / "last-val" / "results.json").read_text())
    assert results["val/count"] == 144
    assert results["val/correct"] == 28


@pytest.mark.long
def test_it_is_resumed_to_the_result_of_the_run_that_was_never_stopped(run: Path, program: Callable[..., str]) -> None:
    output = program("train", "resume=run", cwd=run.parent)
    results = json.loads((run / "results.json").read_text())
    assert {name: results[name] for name in FINISHED} == FINISHED, output
    assert results["test/loss"] == pytest.approx(2.170851, rel=1e-3)
