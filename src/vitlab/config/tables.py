"""Tables of this package in YAML files, each next to the module that reads it."""

from pathlib import Path
from typing import Any

import yaml


def read_table(module: str) -> Any:
    """The content of the table of a module, by its `__file__`."""
    safe_loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is six times as fast
    return safe_loader(Path(module).with_suffix(".yaml").read_text(encoding="utf-8")).get_single_data()
