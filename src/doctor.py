"""Report where the time of a training goes, and which changes make it faster. Settings are those of train.py.

    python src/doctor.py model=vit_s16 data=image_folder data_dir=photos
    python src/doctor.py model=vit_b16 data=cifar10 batch_size=256 changes=[num_workers,precision,compile]

The configuration trains for some tens of steps, measured part by part. Then each change that applies is tried, in
rounds with the configuration. Weights don't change; `doctor.json` is written. It measures one device,
without communication between several.
"""

from pathlib import Path
from typing import Any, Literal

import train
from vitlab.cli.command import command
from vitlab.cli.program import with_settings_of
from vitlab.config.bounds import NonNegativeInt, PositiveInt
from vitlab.config.schema import Node
from vitlab.diagnostics import checks


@command("doctor", check=checks.doctor_problems)
@with_settings_of(train.main, without=("logger", "resume", "sweep", "max_restarts", "max_failures_per_job"))
def main(
    *,
    changes: list[Literal["num_workers", "precision", "batch_size", "log_every_n_steps", "compile", "auto_augment"]],
    workers: list[NonNegativeInt] | None,
    steps: PositiveInt,
    warmup: PositiveInt,
    rounds: PositiveInt,
    run_dir: str,
    **training: Any,
) -> Node:
    """Measure a training.

    Args:
        changes: Changes to try where they apply. `compile` takes minutes, so it is tried only if named.
        workers: Values of `data.num_workers` to try. None: 0, 1, 2, 4 ... up to the number of cores.
        steps: Timed optimizer steps of each training.
        warmup: Steps before them; more with data workers, which load ahead.
        rounds: Rounds, each of which trains the configuration and every change once.
        run_dir: Folder of the report. Set by the program; choose another with `hydra.run.dir`.
    """
    from lightning import seed_everything

    from vitlab.diagnostics.doctor import diagnose
    from vitlab.diagnostics.measure import ProfiledRun
    from vitlab.models.compile import compile_network
    from vitlab.training import build

    datamodule = build.build_data(training["data"])
    seed_everything(training["seed"], verbose=False)
    parts = {name: training[name] for name in ("weights", "optimizer", "schedule")}
    module = build.build_classifier(training["model"], datamodule, training["classifier"], **parts)
    if training["compile"]:
        compile_network(module.network)
    run = ProfiledRun(
        datamodule=datamodule, module=module, trainer=training["trainer"], callbacks=training["callbacks"]
    )
    report = diagnose(run, Path(run_dir), changes=changes, workers=workers, steps=steps, warmup=warmup, rounds=rounds)
    return {key: report[key] for key in ("images_per_second", "mfu", "bottleneck", "advice")}


if __name__ == "__main__":
    main()
