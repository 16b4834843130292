"""Trains a Vision Transformer, keeps its best checkpoint, and tests that once.

    python src/train.py                                        digits, a small ViT, a minute or two on a laptop
    python src/train.py model=vit_b16 trainer.devices=4        any preset, any number of devices
    python src/train.py -m model/size=tiny,small seed=0,1,2    a sweep: six runs

`--help` shows the groups to choose from and every setting.
"""

import os
from pathlib import Path

from vitlab.cli.checks import sweep_problems
from vitlab.cli.command import command
from vitlab.config.bounds import NonNegativeInt, PositiveInt, Seed
from vitlab.config.schema import Node


@command("train", check=sweep_problems)
def main(
    *,
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt],
    batch_size: PositiveInt,
    seed: Seed,
    data_dir: str,
    run_dir: str,
    resume: str | None,
    sweep: str | None,
    name: str,
    objective: str,
    restarts: NonNegativeInt,
    retries: NonNegativeInt,
    compile: bool,
    data: Node,
    model: Node,
    weights: Node,
    classifier: Node,
    optimizer: Node,
    schedule: Node,
    trainer: Node,
    logger: dict[str, Node | None],
    callbacks: dict[str, Node | None],
) -> Node:
    config: Node = {**locals()}  # as config.yaml has it: which the first rank of torchrun's may not have written yet
    from lightning import seed_everything

    from vitlab import build, figures, launch, memory, stopping, tracking
    from vitlab.callbacks import scores
    from vitlab.checkpoints import demand_whole
    from vitlab.models.compile import compile_network
    from vitlab.resume import checkpoint_to_resume, identity
    from vitlab.sweeps.search.pruning import is_pruned

    folder = Path(run_dir)
    datamodule = build.data(data)
    now = identity(config, datamodule)
    start = checkpoint_to_resume(resume, folder, now, first_rank=launch.rank(os.environ) == 0)
    seed_everything(seed, verbose=False)
    module = build.classifier(
        model, datamodule, classifier, weights=None if start else weights, optimizer=optimizer, schedule=schedule
    )
    if compile:
        compile_network(module.network)
    with tracking.ended_truly():
        run = build.trainer(trainer, run_dir=folder, logger=logger or {}, callbacks=callbacks)
        module.identity = {**now, "wandb": tracking.known_run_id(folder)}
        build.describe(run, module, datamodule, batch_size=batch_size, config=config)
        with memory.explained(run, module, datamodule, batch_size=batch_size):
            with stopping.patience():
                run.fit(module, datamodule, ckpt_path=start, weights_only=True)
            results = build.best_scores(run, module, datamodule)
            if is_pruned(run):
                results["status"] = "pruned"
                tracking.mark(run.loggers, "pruned")
            else:
                demand_whole(Path(results["checkpoint"]))
                run.test(module, datamodule, ckpt_path=results["checkpoint"], weights_only=True, verbose=False)
                results |= scores(run, "test")

        picture = folder / "figures" / "curves.png"
        if run.is_global_zero:
            score = "test/acc" if "test/acc" in results else "val/acc"
            figures.curves(folder / "metrics.csv", picture, f"{name}   {score} {results[score]:.4f}")
            tracking.log_image(run.loggers, "curves", picture)
            tracking.log_results(run.loggers, results)
            build.tell(results, folder)
    return results


if __name__ == "__main__":
    main()
