"""Runs that teach other networks."""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import parity
from vitlab.models.vit import VisionTransformer

VIT: dict[str, Any] = {"patch_size": 4, "dim": 16, "depth": 1, "heads": 2, "num_classes": 10, "in_channels": 1}
FROM_DATA = ("num_classes", "in_channels")
NAMES = [str(i) for i in range(10)]


def save_run(folder: Path, network: nn.Module, model: dict[str, Any], size: int = 8, **changes: Any) -> str:
    """A run's folder as far as a teacher needs it, with images of mean 0.4 and deviation 0.2."""
    (folder / "checkpoints").mkdir(parents=True)
    config = {"name": "teacher", "image_size": size, "model": model}
    mean, std = [0.4] * changes.get("channels", 1), [0.2] * changes.get("channels", 1)
    preprocessing = {"mean": mean, "std": std, "interpolation": "bicubic", "crop_fraction": None}
    identity = {"config": config, "data": {"classes": changes.get("classes", NAMES)}, "preprocessing": preprocessing}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "vitlab": identity}, folder / "checkpoints" / "best.ckpt")
    return str(folder)


def digits_teacher(folder: Path) -> str:
    """A run of a ViT for digits of 8 pixels, with weights of ordinary size."""
    torch.manual_seed(1)
    parity.fill(network := VisionTransformer(image_size=8, **VIT))
    node = {"_target_": "vitlab.models.vit.VisionTransformer", "image_size": 8, **VIT}
    return save_run(folder, network, {k: v for k, v in node.items() if k not in FROM_DATA})
