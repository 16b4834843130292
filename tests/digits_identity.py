"""Identities of runs on digits, as their checkpoints record them."""

from functools import cache
from typing import Any

from vitlab.config.schema import Node
from vitlab.data.augment import Augment
from vitlab.data.datamodule import DataModule
from vitlab.data.sets.digits import digits
from vitlab.jobs.identity import run_identity


@cache
def data(**settings: Any) -> DataModule:
    """Digits as a `DataModule`: not to be changed."""
    defaults: dict[str, Any] = {"source": digits, "batch_size": 30, "augment": Augment(), "image_size": 8, "seed": 0}
    datamodule = DataModule(**{**defaults, **settings})
    datamodule.setup()
    return datamodule


def identity(datamodule: DataModule, **model: Any) -> Node:
    config = {"model": {"dim": 16, "heads": 2, "dropout": 0.0, **model}, "optimizer": {"lr": 0.1}}
    return run_identity(config, datamodule)
