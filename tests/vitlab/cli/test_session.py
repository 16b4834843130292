"""`vitlab.compose` and `vitlab.train` do what the command line does, with exceptions for its messages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vitlab
from conftest import SRC
from vitlab.runs.folder import read_config, read_results

TINY = ["trainer.max_epochs=1", "model.dim=16", "model.depth=1", "model.heads=2", "logger=csv"]
QUIET = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "report=false"]


def test_a_configuration_is_that_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = vitlab.compose(["model=vit_s16", "data=cifar10", "trainer.limit_val_batches=2"])
    assert (config["model"]["dim"], config["trainer"]["limit_val_batches"]) == (384, 2)
    assert config["run_dir"].startswith(f"{tmp_path}/runs/cifar10-vit_s16-224px/")
    assert vitlab.compose(run_dir="mine")["run_dir"] == str(tmp_path / "mine")


def test_all_mistakes_are_one_error() -> None:
    with pytest.raises(
        ValueError, match=r"(?s)2 problems .*batch_size=0 must be at least 1.*model.dpth=3: there is no"
    ):
        vitlab.compose(["batch_size=0", "model.dpth=3"])


def test_a_training_returns_its_results_and_leaves_a_run(tmp_path: Path) -> None:
    results = vitlab.train([*TINY, *QUIET], run_dir=tmp_path / "run")
    assert results == read_results(tmp_path / "run")
    assert (results["status"], results["test/count"]) == ("finished", 360)
    assert read_config(tmp_path / "run")["model"]["dim"] == 16
    assert len(vitlab.load(tmp_path / "run").classes) == 10
    torch.use_deterministic_algorithms(False)


@pytest.mark.long
def test_several_devices_are_processes_and_a_failure_is_an_error(tmp_path: Path) -> None:
    code = "import sys, vitlab; print(vitlab.train(sys.argv[2:], run_dir=sys.argv[1])['devices'])"
    command = [sys.executable, "-c", code, str(tmp_path / "run"), *TINY, *QUIET]
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([*command, "trainer.devices=2"], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "2", done.stderr
    done = subprocess.run([*command, "optimizer.lr=1e30"], env=env, capture_output=True, text=True, check=False)
    assert "RuntimeError: the training ended with status 1" in done.stderr


def test_importing_vitlab_is_free() -> None:
    code = "import sys; before = {*sys.modules}; import vitlab; dir(vitlab); print(*{*sys.modules} - before)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=True
    )
    heavy = {"torch", "numpy", "hydra", "omegaconf", "lightning", "timm", "PIL", "wandb"}
    assert heavy.isdisjoint(done.stdout.split()), done.stdout
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = vitlab.lode
