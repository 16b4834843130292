"""Train a Vision Transformer, keep its best checkpoint, and test that once.

    python src/train.py                                        digits, a small ViT, a minute or two on a laptop
    python src/train.py model=vit_b16 trainer.devices=4 data=image_folder data_dir=imagenet    any preset, any devices
    python src/train.py -m model/size=tiny,small seed=0,1,2    a sweep: six runs

All mistakes of a command line are reported before anything starts.
"""

import logging
import os
from pathlib import Path

from vitlab.cli.checks import sweep_problems
from vitlab.cli.command import command
from vitlab.cli.trainer_checks import check_samples
from vitlab.config.bounds import NonNegativeInt, PositiveInt, Seed
from vitlab.config.schema import Node

log = logging.getLogger(__name__)


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
    max_restarts: NonNegativeInt,
    max_failures_per_job: NonNegativeInt,
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
    report: bool = True,
) -> Node:
    """Train a network.

    Args:
        image_size: Height and width of the model's input in pixels, or [height, width]. By default those of the data
            set's images; presets set 224 or 384.
        batch_size: Images of an optimizer step, over all devices and accumulated parts.
        seed: Seed of weights, order, augmentation and dropout. The splits have `data.split_seed`.
        data_dir: Folder of the data sets; missing ones are downloaded to it.
        run_dir: The run folder. Set by the program; choose another with `hydra.run.dir`.
        resume: `auto` (the newest unfinished run of this configuration), a run folder, or a checkpoint.
        sweep: With `-m`: the sweep's name, a folder below runs/sweeps. None: named by the data and what varies.
        name: The run's name. By default the experiment's, else made of the data, the model and the image size.
        objective: Score by which the best checkpoint is chosen and the jobs of a sweep are compared. By default
            accuracy, or loss for data sets of fewer than 5,000 images.
        max_restarts: How often a job with a failed process is restarted from its last checkpoint.
        max_failures_per_job: How often a failed job of a sweep is retried when the sweep is started again.
        compile: Compile the network with torch.compile, block by block. Faster on a GPU, in long runs.
        data: The data set, its splits, batches and augmentation.
        model: The network.
        weights: How the weights that `model.weights` names are loaded.
        classifier: The loss, further metrics, and settings of fine-tuning.
        optimizer: The optimizer, with its peak learning rate.
        schedule: The learning rate as a function of the step.
        trainer: lightning.Trainer: devices, precision, epochs, gradient clipping.
        logger: Where metrics are logged, in addition to metrics.csv.
        callbacks: Checkpoints, the training log, the check for values that aren't finite.
        report: Write RUN/report/index.html at the end: curves, scores, confusion, errors, attention.
    """
    config: Node = {**locals()}  # as in config.yaml, which torchrun's first rank may not have written yet
    from lightning import seed_everything

    from vitlab.distributed import environment, signals
    from vitlab.evaluation import judgement, run_report
    from vitlab.jobs.identity import run_identity
    from vitlab.jobs.resume import checkpoint_to_resume
    from vitlab.models.compile import compile_network
    from vitlab.runs import plots, wandb
    from vitlab.storage.safe_load import verify_checkpoint
    from vitlab.sweeps.search.pruning import is_pruned
    from vitlab.training import build, out_of_memory
    from vitlab.training.classifier import logged_scores

    folder = Path(run_dir)
    datamodule = build.build_data(data)
    check_samples(config, datamodule.samples["train"])
    now = run_identity(config, datamodule)
    start = checkpoint_to_resume(resume, folder, now, first_rank=environment.rank(os.environ) == 0)
    seed_everything(seed, verbose=False)
    module = build.build_classifier(
        model, datamodule, classifier, weights=None if start else weights, optimizer=optimizer, schedule=schedule
    )
    if compile:
        compile_network(module.network)
    with wandb.finish_wandb_run():
        run = build.build_trainer(trainer, run_dir=folder, logger=logger or {}, callbacks=callbacks)
        module.identity = {**now, "wandb": wandb.existing_run_id(folder)}
        build.log_run_description(run, module, datamodule, batch_size=batch_size, config=config)
        rows = None
        with out_of_memory.explain_out_of_memory(run, module, datamodule, batch_size=batch_size):
            with signals.graceful_shutdown():
                run.fit(module, datamodule, ckpt_path=start, weights_only=True)
            results = {**build.best_scores(run, module, datamodule), "ended_by": build.end_reason(run)}
            log.info("training ended by %s: epoch %d, step %d", results["ended_by"], run.current_epoch, run.global_step)
            if results["ended_by"] == "max_time":
                results["status"] = "stopped"  # resume=auto continues it
                log.info("resume=%s continues it, for another trainer.max_time; raise that to train longer", folder)
            if is_pruned(run):
                results |= {"status": "pruned", "ended_by": "pruning"}
            else:
                verify_checkpoint(Path(results["checkpoint"]))
                best = {"ckpt_path": results["checkpoint"], "weights_only": True}
                rows = judgement.collect_rows(run, module, datamodule, folder, **best)
                results |= logged_scores(run, "test")
                results |= build.raw_scores(run, module, datamodule, Path(results["checkpoint"]))

        figure = folder / "figures" / "curves.png"
        if run.is_global_zero:
            score = "test/acc" if "test/acc" in results else "val/acc"
            plots.plot_curves(folder / "metrics.csv", figure, f"{name}   {score} {results[score]:.4f}")
            wandb.log_image(run.loggers, "curves", figure)
            if "test/acc" in results:
                run_report.forget_former_best(folder)
            if report and rows is not None:
                run_report.write_training_report(run, folder, rows, module.network, datamodule)
            wandb.log_results(run.loggers, results)
            build.log_results(results, folder)
    return results


if __name__ == "__main__":
    main()
