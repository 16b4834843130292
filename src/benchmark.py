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
    from vitlab.benchmark import run
    from vitlab.config import instantiate

    nodes = {"networks": networks, "training": training, "loading": loading}
    nodes |= {"start": start, "scaling": scaling, "devices": devices}
    clock = run.clock(rounds=rounds, seconds=seconds, threads=threads, accelerator=accelerator)
    return run.run({name: instantiate.build_object(nodes[name]) for name in parts}, clock, Path(run_dir))


if __name__ == "__main__":
    main()
