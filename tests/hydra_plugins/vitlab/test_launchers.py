"""Hydra finds our launchers, and finding them costs nothing; their YAML files hold all of their settings."""

import subprocess
import sys

import pytest
import yaml
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher

from vitlab.config.signatures import defaults
from vitlab.jobs import compose


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_hydra_knows_each_launcher_and_its_file_holds_the_signature(name: str) -> None:
    file = compose.CONF / "hydra" / "launcher" / f"{name}.yaml"
    node = yaml.safe_load(file.read_text())
    assert node["_target_"] == f"hydra_plugins.vitlab.launchers.{name.capitalize()}Launcher"
    assert issubclass(Plugins.instance().class_name_to_class[node["_target_"]], Launcher)
    signature = defaults(node["_target_"])
    assert node.keys() == signature.keys()
    assert {k for k in node if node[k] != signature[k]} <= {"folder"}, "what differs would hold only where no file is"


def test_finding_them_imports_nothing_heavy() -> None:
    code = "import sys, hydra_plugins.vitlab.launchers; print(*sys.modules)"
    source = str(compose.CONF.parent / "src")
    ended = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.split())
    assert "hydra_plugins.vitlab.launchers" in loaded
    assert not loaded & {
        "torch",
        "lightning",
        "submitit",
        "vitlab.sweeps.launchers.local",
        "vitlab.sweeps.launchers.slurm",
        "numpy",
    }
