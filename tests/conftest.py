"""What several tests need: configurations composed as the programs compose them."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from lightning import Trainer

import train
from vitlab import command
from vitlab.schema import Node

Configure = Callable[..., Node]


@pytest.fixture(scope="session", autouse=True)
def _registered() -> None:
    command.register()


@pytest.fixture(scope="session")
def train_function() -> Callable[..., Node]:
    """The function that `python src/train.py` runs, with its signature."""
    function: Callable[..., Node] = inspect.getclosurevars(train.main).nonlocals["function"]
    return function


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """Overrides -> the resolved configuration of `conf/train.yaml` as plain data, unchecked."""

    def compose(*overrides: str) -> Any:
        with hydra.initialize_config_dir(str(command.CONF), version_base="1.3"):
            return command.plain(command.compose("train", list(overrides)), str(tmp_path / "run"))

    return compose


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """A quiet Trainer on one CPU process, as `conf/trainer` sets it up; settings can be given."""

    def make(**knobs: Any) -> Trainer:
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
        quiet |= {"accelerator": "cpu", "devices": 1, "default_root_dir": str(tmp_path)}
        return Trainer(**{**quiet, **knobs})

    return make
