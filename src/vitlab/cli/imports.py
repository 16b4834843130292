"""What a process imports before it trains, and how: most of the time to the first step is that.

Torch, Lightning and wandb come to more than 5,000 modules. Two things make that slower than it has to be. Python's
collector goes through all of them again and again, though a module is no garbage. And for each of the hundreds of
classes of wandb's protocol, pydantic asks `inspect` where it was written, which goes through all modules that there
are: so wandb comes first, while these are few.
"""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vitlab.config.schema import Node, child_nodes

WANDB = "vitlab.runs.wandb.wandb_logger"
# the second is what `wandb.init` imports, in every run
WANDB_MODULES = ("wandb", "wandb.sdk.launch.inputs.internal")


@contextmanager
def gc_paused() -> Iterator[None]:
    """Python's collector waits until the block ends; what the block has imported it never looks at again."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def preload(config: Node) -> None:
    """Imports what a job of this configuration needs in this process, in the order that costs least."""
    if "torch" not in sys.modules and any(
        node["_target_"] == WANDB for node in child_nodes(config.get("logger")).values()
    ):
        for name in WANDB_MODULES:
            with suppress(ImportError):  # told where it is used
                importlib.import_module(name)
    if "trainer" in config:
        importlib.import_module("vitlab.training.build")
