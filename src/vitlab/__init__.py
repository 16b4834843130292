"""vitlab: Vision Transformer experiments."""

import signal
import sys
from importlib import import_module
from pathlib import Path
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

HERE, MAIN = Path(__file__).resolve().parent, getattr(sys.modules["__main__"], "__file__", None)
IS_PROGRAM = MAIN and Path(MAIN).resolve().parent in (HERE.parent, HERE / "programs")
if IS_PROGRAM and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nobody ignores it
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while a program starts, Ctrl-C ends it without a traceback


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module 'vitlab' has no attribute {name!r}")
    module, attribute = NAMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *NAMES])
