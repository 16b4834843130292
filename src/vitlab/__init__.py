"""vitlab: Vision Transformer experiments."""

from importlib import import_module
from typing import Any

# imported on first use: `import vitlab` is free
NAMES = {
    "CONF": ("vitlab.config.paths", "CONF"),
    "DataModule": ("vitlab.data.datamodule", "DataModule"),
    "Classifier": ("vitlab.training.classifier", "Classifier"),
    "compose": ("vitlab.cli.session", "compose"),
    "train": ("vitlab.cli.session", "train"),
    "load": ("vitlab.evaluation.trained_model", "load_model"),
    "VisionTransformer": ("vitlab.models.vit", "VisionTransformer"),
}


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module 'vitlab' has no attribute {name!r}")
    module, attribute = NAMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *NAMES])
