"""`make benchmark`: measure vitlab and its peers on this machine, all parts or some.

    python tests/benchmark parts=[networks] networks.sizes=[s16] rounds=20
    python tests/benchmark parts=[training,start] out=FOLDER

`out` gets all measurements (`benchmark.csv`), tables with ratios and goals (`benchmark.md`) and figures. The settings
of a part are the fields of its class.
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from benchmark import run
from benchmark.devices import Devices
from benchmark.loading import Loading
from benchmark.networks import Networks
from benchmark.scaling import Scaling
from benchmark.startup import Startup
from benchmark.training import Training
from vitlab.cli import register

PARTS = {part.part: part for part in (Networks, Training, Loading, Startup, Scaling, Devices)}


@dataclass
class Settings:
    """parts    parts to measure, in this order
    rounds   measurements of each contender, in turns with all others
    seconds  minimum duration of a measurement; short calls are repeated
    threads  CPU threads of a call; None: torch's default
    gpu      whether to measure on a GPU if there is one
    """

    parts: list[str] = field(default_factory=lambda: [*PARTS])
    rounds: int = 9
    seconds: float = 0.3
    threads: int | None = None
    gpu: bool = True
    out: str = "runs/benchmark"
    networks: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    scaling: dict[str, Any] = field(default_factory=dict)
    devices: dict[str, Any] = field(default_factory=dict)


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    merged = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_cli(arguments))
    settings: Any = OmegaConf.to_container(merged)
    chosen = Settings(**settings)
    parts = {name: PARTS[name](**getattr(chosen, name)) for name in chosen.parts}
    register.register()
    register.register_resolvers()
    folder = Path(chosen.out)
    folder.mkdir(parents=True, exist_ok=True)
    clock = run.clock(rounds=chosen.rounds, seconds=chosen.seconds, threads=chosen.threads, gpu=chosen.gpu)
    run.run(parts, clock, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
