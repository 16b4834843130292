"""Export safetensors with vitlab's names, and a config.json with the constructor's arguments."""

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from vitlab.config import instantiate
from vitlab.export.checkpoint import ExportModel
from vitlab.export.folder import write_json, write_tensors


def write_safetensors(trained: ExportModel, folder: Path, *, fold: bool) -> None:
    """Write model.safetensors, and config.json with the key `vitlab` as in a checkpoint."""
    write_tensors(folder / "model.safetensors", dict(trained.network.state_dict()))
    model = {"_target_": trained.weights.config["model"]["_target_"], **trained.arguments}
    data = {"classes": list(trained.classes)}
    config = {"model": model, "classifier": {"loss": trained.loss}}
    identity = {"config": config, "data": data, "preprocessing": trained.preprocessing}
    write_json(folder / "config.json", {"vitlab": identity})


def load_safetensors(folder: Path, trained: ExportModel) -> Callable[[Tensor], Tensor]:
    """Build the network from the folder alone."""
    from safetensors.torch import load_file

    node = json.loads((folder / "config.json").read_text())["vitlab"]["config"]["model"]
    network = instantiate.build_object(node)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    loaded: Callable[[Tensor], Tensor] = network.eval()
    return loaded
