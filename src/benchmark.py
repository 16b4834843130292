"""Measure vitlab and its peers on this machine.

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
    """Measure what `parts` names.

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
        run_dir: Folder of the numbers, tables and pictures. Set by the program.
    """
    from vitlab.benchmark import machine, run
    from vitlab.config import instantiate

    nodes = {"networks": networks, "training": training, "loading": loading}
    nodes |= {"start": start, "scaling": scaling, "devices": devices}
    clock = machine.clock(rounds=rounds, seconds=seconds, threads=threads, accelerator=accelerator)
    return run.run({name: instantiate.build_object(nodes[name]) for name in parts}, clock, Path(run_dir))


if __name__ == "__main__":
    main()
