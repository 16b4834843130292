"""The examples run as they are, on settings of a few seconds."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from conftest import SRC, Exportable

EXAMPLES = SRC.parent / "examples"
TINY = ["trainer.max_epochs=1", "model.dim=16", "model.depth=1", "model.heads=2", "trainer.accelerator=cpu"]

Example = Callable[..., str]


@pytest.fixture
def example(tmp_path: Path) -> Example:
    """Runs an example in an empty folder; returns what it prints."""

    def run(name: str, *arguments: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(SRC), "MPLBACKEND": "agg"}
        command = [sys.executable, str(EXAMPLES / name), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_every_example_is_tested() -> None:
    text = Path(__file__).read_text()
    assert [file.name for file in EXAMPLES.iterdir() if file.is_file() and f'"{file.name}"' not in text] == []


@pytest.mark.long
def test_a_training_in_python_ends_with_predictions(example: Example) -> None:
    shown = example("train_in_python.py", *TINY)
    assert "finished: test accuracy" in shown
    assert shown.count("label ") == 5


@pytest.mark.long
def test_own_data_trains_in_an_own_loop_and_in_lightning(example: Example) -> None:
    shown = example("own_data_and_loop.py", "2")
    assert "epoch 2: " in shown
    assert "Lightning: val/acc" in shown


@pytest.mark.long
def test_predictions_and_attention_are_shown(example: Example, exportable: Exportable, tmp_path: Path) -> None:
    run = exportable(image_size=16, patch_size=4).weights.run
    (tmp_path / "photos").mkdir()
    Image.effect_noise((30, 20), 60).convert("RGB").save(tmp_path / "photos" / "a.png")
    shown = example("predict_and_attention.py", str(run), "photos")
    assert "photos/a.png kind" in shown
    assert "features: (1, 32)" in shown
    with Image.open(tmp_path / "attention.png") as picture:
        assert picture.width > picture.height


@pytest.mark.long
def test_the_cells_of_the_notebook_run(example: Example, tmp_path: Path) -> None:
    notebook = json.loads((EXAMPLES / "from_data_to_attention.ipynb").read_text())
    assert (notebook["nbformat"], [cell["outputs"] for cell in notebook["cells"] if "outputs" in cell]) == (4, [[]] * 6)
    code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    code = code.replace('"trainer.max_epochs=20"', ", ".join(f'"{setting}"' for setting in TINY))
    (tmp_path / "cells.py").write_text(f"{code}\nprint(maps.shape, features.shape)\n")
    assert "torch.Size([1, 2, 17, 17]) torch.Size([100, 16])" in example(str(tmp_path / "cells.py"))
