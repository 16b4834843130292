"""The wheel, installed into an empty environment, has all that training from another folder needs."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from vitlab.config import paths

PIP = (sys.executable, "-m", "pip")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def printed(*line: str | Path, cwd: Path) -> str:
    done = subprocess.run(line, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    printed(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, paths.ROOT, cwd=folder)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs of an environment that has the wheel, and its dependencies from the tests' own."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    printed(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # a folder in a .pth file has its own .pth files ignored: so an editable vitlab there stays out
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder / "bin"


def test_the_wheel_holds_programs_configuration_and_experiments(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    expected = {"vitlab/py.typed", "hydra_plugins/vitlab/grid.py"}
    expected |= {f"vitlab/programs/{file.name}" for file in paths.PROGRAMS.glob("*.py")}
    expected |= {f"vitlab/conf/{file.relative_to(paths.CONF).as_posix()}" for file in paths.CONF.rglob("*.yaml")}
    expected |= {f"vitlab/experiments/{file.name}" for file in paths.EXPERIMENTS.glob("*.*")}
    assert expected - names == set()


def test_the_command_trains_from_another_folder(environment: Path, tmp_path: Path) -> None:
    place = printed(environment / "python", "-c", "import vitlab; print(vitlab.__file__)", cwd=tmp_path)
    assert Path(place).is_relative_to(environment.parent)
    assert printed(environment / "vitlab", "--version", cwd=tmp_path) == f"vitlab {paths.version()}\n"
    settings = ["model=vit_mini", "experiment=digits", "trainer.max_steps=2", "schedule.warmup_steps=0", "logger=csv"]
    line = ["train", *settings, "trainer.accelerator=cpu", "hydra.run.dir=run"]
    printed(environment / "vitlab", *line, cwd=tmp_path)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["status"], results["steps"]) == ("finished", 2)
    assert results["command"].startswith("vitlab train model=vit_mini experiment=digits")
