"""Export a network, and run the code that its model card shows."""

from pathlib import Path
from typing import Any

from vitlab.export.export import export_network


def run_card(trained: Any, name: str, out: Path, *, fold: bool = False) -> dict[str, Any]:
    """The names that the code defines."""
    export_network(trained, name, out, fold=fold, tolerance=1e-4, license=None)
    code = (out / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(out)), names)
    return names
