"""Check the choice of a launcher (`hydra/launcher=...`) and its settings."""

from importlib.util import find_spec
from typing import Any

from vitlab.config.schema import format_value, node_problems

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # Hydra's own: one job after the other
OURS = "hydra_plugins.vitlab.launchers"
REMOTE = {f"{OURS}.SlurmLauncher": "submitit", f"{OURS}.RayLauncher": "ray"}  # and the packages they need


def problems(node: Any, *, sweep: bool) -> tuple[list[str], bool]:
    """Return everything wrong with the node `hydra.launcher`, and whether it starts jobs on other machines."""
    if not isinstance(node, dict):
        return [f"hydra.launcher={format_value(node)} is not a mapping"], False
    target = str(node.get("_target_"))
    name, package, lines = target.rpartition(".")[2], REMOTE.get(target), []
    if target != BASIC and not sweep:
        lines.append(f"hydra.launcher={name} starts a sweep's jobs, and this is one run; add -m")
    if package and find_spec(package) is None:
        option = name.removesuffix("Launcher").lower()
        lines.append(f"hydra/launcher={option} is not installed: pip install {package}")
    if target.startswith(f"{OURS}."):
        lines += node_problems("hydra.launcher", node)
    return lines, package is not None
