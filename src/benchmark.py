"""Measure vitlab and its peers on this machine: `python src/benchmark.py`, or parts of it.

    python src/benchmark.py parts=[networks] networks.sizes=[s16] rounds=20
    python src/benchmark.py parts=[training,start]

The run folder gets every measurement (`benchmark.csv`), tables with ratios and goals (`benchmark.md`) and pictures.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from vitlab.cli.command import command
from vitlab.config.schema import Node
from vitlab.config.view import ConfigView


def problems(view: ConfigView) -> Iterator[str]:
    from vitlab.benchmark import checks

    yield from checks.problems(view)


@command("benchmark", check=problems)
def main(
    *,
    parts: list[Literal["networks", "training", "loading", "start", "scaling", "devices"]],
    rounds: int,
    seconds: float,
    threads: int | None,
    accelerator: Literal["auto", "cpu", "gpu"],
    networks: Node,
    training: Node,
    loading: Node,
    start: Node,
    scaling: Node,
    devices: Node,
    run_dir: str,
) -> Node:
    from vitlab.benchmark import machine, run
    from vitlab.config import instantiate

    nodes = {"networks": networks, "training": training, "loading": loading}
    nodes |= {"start": start, "scaling": scaling, "devices": devices}
    clock = machine.clock(rounds=rounds, seconds=seconds, threads=threads, accelerator=accelerator)
    return run.run({name: instantiate.build_object(nodes[name]) for name in parts}, clock, Path(run_dir))


if __name__ == "__main__":
    main()
