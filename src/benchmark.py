"""Measure vitlab and its peers on this machine: all of the benchmark, or parts of it.

    python src/benchmark.py parts=[networks] networks.sizes=[s16] rounds=20
    python src/benchmark.py parts=[training,start]

The run folder gets all measurements (`benchmark.csv`), tables with ratios and goals (`benchmark.md`) and figures.
"""

from pathlib import Path
from typing import Literal

from vitlab.benchmark import checks
from vitlab.cli.command import command
from vitlab.config.bounds import NonNegativeFloat, PositiveInt
from vitlab.config.schema import Node


@command("benchmark", check=checks.benchmark_problems)
def main(
    *,
    parts: list[Literal["networks", "training", "loading", "start", "scaling", "devices"]],
    rounds: PositiveInt,
    seconds: NonNegativeFloat,
    threads: PositiveInt | None,
    accelerator: Literal["auto", "cpu", "gpu"],
    networks: Node,
    training: Node,
    loading: Node,
    start: Node,
    scaling: Node,
    devices: Node,
    run_dir: str,
) -> Node:
    """Measure parts of the benchmark.

    Args:
        parts: Parts to measure, in this order.
        rounds: Measurements of each contender, in turns with all others.
        seconds: Minimum duration of a measurement; short calls are repeated.
        threads: CPU threads of a call. None: torch's default.
        accelerator: Device to measure on.
        networks: Inference and training steps of vitlab, timm, torchvision, transformers and vit-pytorch.
        training: All of train.py, and a bare training loop.
        loading: Images per second and core, in memory and from JPEG files.
        start: Seconds to `--help` and to the first step; memory of a process.
        scaling: Time and FLOPs against tokens, width, depth and batch size.
        devices: train.py on 1, 2, 4 ... devices; needs two GPUs, or `devices.counts`.
        run_dir: Folder of the numbers, tables and figures. Set by the program.
    """
    from vitlab.benchmark import run
    from vitlab.config import instantiate

    nodes = {"networks": networks, "training": training, "loading": loading}
    nodes |= {"start": start, "scaling": scaling, "devices": devices}
    clock = run.clock(rounds=rounds, seconds=seconds, threads=threads, accelerator=accelerator)
    return run.run({name: instantiate.build_object(nodes[name]) for name in parts}, clock, Path(run_dir))


if __name__ == "__main__":
    main()
