"""Jobs on a cluster: submitit's queue on this machine, and a Ray cluster of two nodes started on it."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from vitlab import command, launch
from vitlab.stopping import STATUS

SOURCE = str(command.CONF.parent / "src")
TESTS = str(Path(__file__).parent)
RANK = """
import json, os
from pathlib import Path
folder, rank = Path(os.environ['VITLAB_RUN']), os.environ.get('RANK', '0')
(folder / rank).write_text(json.dumps(dict(os.environ)))
"""


def ranks(cfg: DictConfig) -> float:
    """A job whose ranks leave what they were told; it fails, or is stopped, as its seed says."""
    run_dir = Path(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir)
    launch.run_ranks(Path(cfg.data_dir), run_dir, cfg.trainer.devices)
    if cfg.seed == 1:
        raise ValueError("seed 1 is not liked")
    if cfg.seed == 2:
        sys.exit(STATUS["preempted"])
    return float(cfg.seed)
