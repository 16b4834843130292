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
    """Measure a training.

    Args:
        changes: Changes to try where they apply. `compile` takes minutes, so it is tried only if named.
        workers: Values of `data.num_workers` to try. None: 0, 1, 2, 4 ... up to the number of cores.
        steps: Timed optimizer steps of each training.
        warmup: Steps before them; more with data workers, which load ahead.
        rounds: Rounds, each of which trains the configuration and every change once.
        trace: Write a Chrome trace of every operator to RUN/trace/, for chrome://tracing.
        image_size: Height and width of the model's input in pixels, or [height, width]. By default those of the data
            set's images; presets set 224 or 384.
        batch_size: Images of an optimizer step.
        seed: Seed of weights, order, augmentation and dropout.
        data_dir: Folder of the data sets; missing ones are downloaded to it.
        run_dir: Folder of the report. Set by the program; choose another with `hydra.run.dir`.
        name: Name of the report's folder, made of the data, the model and the image size.
        objective: As in train.py; the callbacks refer to it.
        compile: Compile the network with torch.compile, as in train.py.
        data: The data set, its splits, batches and augmentation.
        model: The network.
        weights: How the weights that `model.weights` names are loaded.
        classifier: The loss, further metrics, and settings of fine-tuning.
        optimizer: The optimizer, with its learning rate.
        schedule: The learning rate as a function of the step.
        trainer: lightning.Trainer: devices, precision, gradient clipping.
        callbacks: As in train.py.
    """
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
