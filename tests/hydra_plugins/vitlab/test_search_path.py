"""A Hydra program of one's own finds vitlab's groups with its configuration folder on the search path."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import SRC

PROGRAM = """
import hydra
import vitlab

@hydra.main(version_base="1.3", config_path=".", config_name="mine")
def main(cfg):
    print(cfg.model.dim, cfg.model.mlp_ratio, cfg.data.augment.mixup, cfg.own)

main()
"""
YAML = f"""
defaults:
  - training
  - override model: vit_ti16
  - _self_
own: 3
hydra:
  searchpath: [file://{SRC.parent / "conf"}]
"""


def test_a_program_of_ones_own_composes_with_our_groups(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(YAML)
    (tmp_path / "program.py").write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    command = [sys.executable, "program.py", "data.augment.mixup=0.2"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["192", "4.0", "0.2", "3"], done.stderr


def test_hydras_compose_finds_our_groups(tmp_path: Path) -> None:
    code = """
import hydra, vitlab
with hydra.initialize_config_dir(str(vitlab.CONF), version_base="1.3"):
    print(hydra.compose("train", ["model=vit_ti16"]).model.dim)
"""
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["192"], done.stderr
