"""Jobs for the launchers of clusters, whose ranks write their environments. Workers import this file."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vitlab.cli import register
from vitlab.distributed import launch
from vitlab.distributed.signals import STATUS, StopRequested
from vitlab.jobs import compose

register.register_resolvers()  # in workers too
ROOT = compose.CONF.parent
PYTHONPATH = os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests")))
RANK = """
import json, os, signal, sys, time
from pathlib import Path
from vitlab.distributed import launch
launch.exit_with_parent(int(os.environ['VITLAB_PARENT']))
folder, rank = Path(os.environ['VITLAB_RUN']), os.environ.get('RANK', '0')
def stopped(number, frame):
    (folder / f'signal{rank}').write_text(str(int(number)))
    sys.exit(130)
signal.signal(signal.SIGINT, stopped)
(folder / rank).write_text(json.dumps(dict(os.environ, OWN=str(os.getpid()))))
while len([*folder.glob('[0-9]')]) < int(os.environ.get('WORLD_SIZE', '1')):
    time.sleep(0.05)  # real ranks don't end before all have met either
if (folder.parent / 'wait').exists():
    time.sleep(600)
"""


def ranks(cfg: DictConfig) -> float:
    """A job whose ranks write their environments; it fails or is stopped, depending on its seed."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        launch.run_ranks(run_dir.parent / "rank.py", run_dir, cfg.trainer.devices)
    except StopRequested as stop:
        sys.exit(STATUS[stop.outcome])
    if cfg.seed == 1:
        raise ValueError("seed 1 is not liked")
    if cfg.seed == 2:
        sys.exit(STATUS["preempted"])
    return float(cfg.seed)


def rank_environments(folder: Path, job: int) -> list[Any]:
    """The environments of a job's ranks."""
    return [json.loads(file.read_text()) for file in sorted((folder / str(job)).glob("[0-9]"))]


def seeds(*numbers: int) -> list[list[str]]:
    return [[f"seed={number}", "trainer.devices=2"] for number in numbers]
