"""Our own names in a safetensors file, with config.json beside it: what `vitlab.models.vit` loads without a run."""

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from vitlab.config import instantiate
from vitlab.config.schema import Node
from vitlab.exporting import writing
from vitlab.exporting.trained import Trained


def refusals(arguments: Node) -> list[str]:
    """Nothing: every network has a state."""
    return []


def write(trained: Trained, folder: Path, *, fold: bool) -> None:
    """model.safetensors and config.json, which says what a checkpoint says of its run."""
    writing.tensors(folder / "model.safetensors", dict(trained.network.state_dict()))
    writing.json_file(
        folder / "config.json",
        {
            "vitlab": {
                "config": {"model": {"_target_": trained.kept.config["model"]["_target_"], **trained.arguments}},
                "data": {"classes": list(trained.classes)},
                "preprocessing": {
                    "mean": list(trained.mean),
                    "std": list(trained.std),
                    "interpolation": trained.interpolation,
                    "crop_fraction": trained.crop_fraction,
                },
            }
        },
    )


def load(folder: Path, trained: Trained) -> Callable[[Tensor], Tensor]:
    """The network that the folder alone describes."""
    from safetensors.torch import load_file

    node = json.loads((folder / "config.json").read_text())["vitlab"]["config"]["model"]
    network = instantiate.build_object(node)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    loaded: Callable[[Tensor], Tensor] = network.eval()
    return loaded


def usage(trained: Trained) -> str:
    """How to load it."""
    module, _, name = trained.kept.config["model"]["_target_"].rpartition(".")
    return f"""import json
from pathlib import Path

from safetensors.torch import load_file
from {module} import {name}

arguments = json.loads(Path("FOLDER/config.json").read_text())["vitlab"]["config"]["model"]
model = {name}(**{{key: value for key, value in arguments.items() if key != "_target_"}}).eval()
model.load_state_dict(load_file("FOLDER/model.safetensors"))"""
