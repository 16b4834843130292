"""Report where the time of a training goes, and which changes make it faster. Settings are those of train.py.

    python src/doctor.py model=vit_s16 data=image_folder data_dir=photos
    python src/doctor.py model=vit_b16 data=cifar10 batch_size=256 changes=[num_workers,precision,compile] trace=true

The configuration trains for some tens of steps, measured part by part. Then each change that applies is tried, in
rounds with the configuration. Weights don't change; `doctor.json` is written. It measures one device,
without communication between several.
"""

from pathlib import Path
from typing import Literal

from vitlab.cli.command import command
from vitlab.config.bounds import NonNegativeInt, PositiveInt, Seed
from vitlab.config.schema import Node
from vitlab.diagnostics import checks


@command("doctor", check=checks.doctor_problems)
def main(
    *,
    changes: list[Literal["num_workers", "precision", "batch_size", "log_every_n_steps", "compile", "auto_augment"]],
    workers: list[NonNegativeInt] | None,
    steps: PositiveInt,
    warmup: PositiveInt,
    rounds: PositiveInt,
    trace: bool,
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt],
    batch_size: PositiveInt,
    seed: Seed,
    data_dir: str,
    run_dir: str,
    name: str,
    objective: str,
    compile: bool,
    data: Node,
    model: Node,
    weights: Node,
    classifier: Node,
    optimizer: Node,
    schedule: Node,
    trainer: Node,
    callbacks: dict[str, Node | None],
) -> Node:
    from lightning import seed_everything

    from vitlab.diagnostics.doctor import diagnose
    from vitlab.diagnostics.measure import ProfiledRun
    from vitlab.models.compile import compile_network
    from vitlab.training import build

    datamodule = build.build_data(data)
    seed_everything(seed, verbose=False)
    module = build.build_classifier(
        model, datamodule, classifier, weights=weights, optimizer=optimizer, schedule=schedule
    )
    if compile:
        compile_network(module.network)
    run = ProfiledRun(datamodule=datamodule, module=module, trainer=trainer, callbacks=callbacks)
    report = diagnose(
        run, Path(run_dir), changes=changes, workers=workers, steps=steps, warmup=warmup, rounds=rounds, trace=trace
    )
    return {key: report[key] for key in ("images_per_second", "mfu", "bottleneck", "advice")}


if __name__ == "__main__":
    main()
