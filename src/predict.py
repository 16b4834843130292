"""Predict the classes of images, or compute their features.

    python src/predict.py run=runs/NAME/STAMP images=photos
    python src/predict.py run=runs/NAME/STAMP/export/onnx "images=photos/*.jpg" top=3
    python src/predict.py run=timm:vit_small_patch14_dinov2 images=photos embed=true trainer.devices=2

The files are in `runs/predictions/STAMP`; images that can't be read are listed with the reason.
"""

import time
from pathlib import Path
from typing import Any

from vitlab.cli.command import command
from vitlab.config.bounds import NonNegativeInt, PositiveInt
from vitlab.config.schema import Node
from vitlab.evaluation import checks


@command("predict", check=checks.prediction_problems, absent=("data",))
def main(
    *,
    run: str,
    images: str | list[str],
    checkpoint: str,
    part: str | None,
    top: PositiveInt,
    embed: bool,
    batch_size: PositiveInt,
    num_workers: NonNegativeInt | None,
    run_dir: str,
    trainer: Node,
) -> Node:
    """Predict images.

    Args:
        run: Folder of a run or of an export, an ONNX file that vitlab exported, or weights: `timm:NAME`, `hf:NAME`, a
            file.
        images: A file, a folder, a pattern such as `photos/*.jpg`, or several of them.
        checkpoint: Of a run: `best`, `last` or another name.
        part: Which weights of a file with several, such as `ema` or `raw`. None: the tested ones.
        top: Number of classes of an image.
        embed: Write features too: what the head reads.
        batch_size: Images of a batch on each device.
        num_workers: Loading processes per device; None: the device's share of the cores.
        run_dir: Folder of the results. Set by the program; choose another with `hydra.run.dir`.
        trainer: lightning.Trainer: devices and precision.
    """
    from vitlab.data.file_list import find_images
    from vitlab.distributed import environment
    from vitlab.evaluation import prediction_files
    from vitlab.evaluation.trained_model import load_model
    from vitlab.training import build

    paths, model = find_images(images), load_model(run, checkpoint=checkpoint, part=part)
    if not (model.has_head or embed):
        raise ValueError(f"run={run} has no head, so there are no classes to predict; set embed=true")
    tester = build.build_trainer(trainer, run_dir=Path(run_dir))
    workers = max(1, environment.cores() // tester.num_devices) if num_workers is None else num_workers
    start = time.monotonic()
    options: Any = {"top": top, "batch_size": batch_size, "workers": workers, "embed": embed}
    results = prediction_files.predict_files(paths, model, tester, Path(run_dir), **options)
    return {**results, "run": run, "seconds": round(time.monotonic() - start, 3)}


if __name__ == "__main__":
    main()
