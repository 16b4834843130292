"""Import what a process needs before it trains, in the fastest way: imports are most of the time to the first step.

Torch, Lightning and wandb are more than 5,000 modules. Python's garbage collector would go through them repeatedly, so
it is paused. For each of the hundreds of classes of wandb's protocol, pydantic calls `inspect`, which goes through all
imported modules: so wandb is imported first, while these are few.
"""

import gc
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitlab.config.schema import Node, child_nodes
from vitlab.distributed import environment

WANDB = "vitlab.runs.wandb.wandb_logger"
# the second is imported by `wandb.init` in every run
WANDB_MODULES = ("wandb", "wandb.sdk.launch.inputs.internal")
TRAINING = ("training.build", "evaluation.run_report", "runs.plots", "sweeps.search.pruning", "sweeps.claim")


@contextmanager
def pause_gc() -> Iterator[None]:
    """Pause the garbage collector in a block, and exclude from it what the block imports."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def print_if_slow(line: str, seconds: float = 0.5) -> Iterator[None]:
    """Print a line if the block takes longer than so many seconds."""
    timer = threading.Timer(seconds, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def print_importing(name: str) -> None:
    """Print a line before the imports that take a command several seconds, in its first process."""
    if "torch" not in sys.modules and environment.rank(os.environ) == 0:
        print(f"{name}: importing torch and Lightning", file=sys.stderr, flush=True)


def preload(config: Node) -> None:
    """Import what a job of this configuration needs, in the fastest order."""
    loggers = [node["_target_"] for node in child_nodes(config.get("logger")).values()]
    is_tracked = config.get("wandb") and Path(f"{config.get('run')}/wandb/run_id").exists()
    if "torch" not in sys.modules and (WANDB in loggers or is_tracked):
        for name in WANDB_MODULES:
            with suppress(ImportError):  # reported where it is used
                importlib.import_module(name)
    for name in TRAINING if "trainer" in config else ():
        importlib.import_module(f"vitlab.{name}")


def set_rank() -> None:
    """Set the rank that Lightning and torchmetrics have read when a template imported them."""
    for name in {"lightning.fabric.utilities.rank_zero", "torchmetrics.utilities.prints"} & sys.modules.keys():
        sys.modules[name].rank_zero_only.rank = environment.rank(os.environ)
