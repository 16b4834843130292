"""Who starts a sweep's jobs (`hydra/launcher=...`): what may be wrong with the choice, and which package it wants."""

from importlib.util import find_spec
from typing import Any

from vitlab.config.schema import Node, format_value, node_problems

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # Hydra's own: one job after the other
OURS = "hydra_plugins.vitlab.launchers"
ELSEWHERE = {f"{OURS}.SlurmLauncher": "submitit", f"{OURS}.RayLauncher": "ray"}  # on other machines, by this package
# Options that are there once their package is.
PLUGINS = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
}
POSITIVE = ("jobs", "timeout_min", "cpus_per_device", "mem_gb", "parallel")


def missing_plugin(group: str, option: str) -> str | None:
    """What to install for an option that isn't there; None where that is not the reason."""
    package = PLUGINS.get(option) if group == "hydra/launcher" else None
    return f"{group}={option} is not installed: pip install {package}" if package else None


def problems(node: Any, *, sweep: bool) -> tuple[list[str], bool]:
    """What is wrong with the unresolved node `hydra.launcher`, and whether it starts jobs on other machines."""
    if not isinstance(node, dict):
        return [f"hydra.launcher={format_value(node)} is not a mapping"], False
    target = node.get("_target_")
    package = ELSEWHERE.get(str(target))
    found = []
    if target != BASIC and not sweep:
        found.append(
            f"hydra.launcher={str(target).rpartition('.')[2]} starts a sweep's jobs, and this is one run; add -m"
        )
    if package and find_spec(package) is None:
        found.append(f"hydra/launcher={option_name(node)} is not installed: pip install {package}")
    if str(target).startswith(f"{OURS}."):
        found += node_problems("hydra.launcher", node)
        for key in POSITIVE:
            value = node.get(key)
            if isinstance(value, int | float) and value <= 0:
                found.append(f"hydra.launcher.{key}={value} must be more than 0")
    return found, package is not None


def option_name(node: Node) -> str:
    """The name under which a launcher of ours is chosen."""
    return str(node["_target_"]).rpartition(".")[2].removesuffix("Launcher").lower()
