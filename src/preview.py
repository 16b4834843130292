"""Show what the network sees: a training's images at a step, evaluation's crops, and each augmentation alone.

    python src/preview.py step=100
    python src/preview.py data=cifar10 data.augment.auto_augment=randaugment data.augment.mixup=0.2 logger=wandb

Settings are those of train.py. `training.png` has the pixels that training gets at that step, bit for bit, and the
targets after mixing, `evaluation.png` evaluation's crops of the same images, and `operations.png` each operation of
automatic augmentation alone, at its levels.
"""

import logging
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

import train
from vitlab.cli.checks import with_settings_of
from vitlab.cli.command import command
from vitlab.config.bounds import NonNegativeInt, PositiveInt
from vitlab.config.schema import Node

log = logging.getLogger(__name__)


@command("preview", absent=("devices",))
@with_settings_of(train.main, without=("resume", "max_restarts", "max_failures_per_job"))
def main(
    *,
    step: NonNegativeInt,
    count: PositiveInt,
    levels: list[Annotated[int, Ge(0), Le(30)]],
    run_dir: str,
    **training: Any,
) -> Node:
    """Show images.

    Args:
        step: Optimizer steps before the one that is shown; 0 is the first.
        count: Images of the step that are shown.
        levels: Levels of the operations of automatic augmentation, 0 to 30.
        run_dir: Folder of the pictures. Set by the program; choose another with `hydra.run.dir`.
    """
    from vitlab.config.instantiate import build_object
    from vitlab.diagnostics import preview
    from vitlab.runs import wandb
    from vitlab.training import build

    datamodule = build.build_data(training["data"])
    files = preview.draw_previews(datamodule, training["trainer"], Path(run_dir), step=step, count=count, levels=levels)
    with wandb.finish_wandb_run():
        loggers = [build_object(node) for node in (training["logger"] or {}).values() if node]
        for file in files:
            wandb.log_image(loggers, f"preview/{file.stem}", file)
    log.info("pictures: %s", ", ".join(map(str, files)))
    return {"pictures": [str(file) for file in files]}


if __name__ == "__main__":
    main()
