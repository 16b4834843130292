"""Score a run's checkpoint on a split of its data, or any weights on any data.

    python src/evaluate.py run=runs/NAME/STAMP split=test
    python src/evaluate.py run=runs/NAME/STAMP probe=linear
    python src/evaluate.py model.weights=timm:vit_small_patch14_dinov2 data=cifar100 image_size=224 probe=linear
    python src/evaluate.py model.weights=hf:google/vit-base-patch16-224 data=image_folder data_dir=imagenet
    python src/evaluate.py model=timm model.model_name=resnet18 model.pretrained=true data=cifar100 probe=knn
    python src/evaluate.py run=runs/NAME/STAMP fit_temperature=true
    python src/evaluate.py run=runs/NAME/STAMP test_dir=imagenet-a test_set=imagenet-a
    python src/evaluate.py run=runs/NAME/STAMP corruptions=all

Scores are logged and written to `RUN/evaluation/CHECKPOINT-SPLIT/results.json`; the best checkpoint's on the test split
equal training's. The judgement is next to it: intervals, classes, images, confusion and calibration
(`vitlab.evaluation.judgement`), and `RUN/report/index.html` has all of a run. Without a probe the head is scored:
weights from elsewhere need a head with the classes of the data, in their order.

`probe=linear` or `probe=knn` scores the features before the head (`vitlab.evaluation.probes`). They are computed once,
and cached in `features_dir`: `RUN/features`, or `runs/features`.
"""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from vitlab.cli.command import command
from vitlab.config.bounds import PositiveInt, Seed
from vitlab.config.schema import Node
from vitlab.evaluation import checks

log = logging.getLogger(__name__)


@command("evaluate", check=checks.evaluation_problems)
def main(
    *,
    run: str | None,
    checkpoint: Literal["best", "last"],
    split: Literal["train", "val", "test"],
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None,
    batch_size: PositiveInt | None,
    seed: Seed,
    data_dir: str | None,
    features_dir: str,
    fit_temperature: bool,
    test_dir: str | None,
    test_set: checks.TestSet,
    class_map: str | None,
    corruptions: Literal["all"] | tuple[checks.Corruption, ...] | None,
    severities: tuple[Annotated[int, Ge(1), Le(5)], ...],
    frost_dir: str | None,
    wandb: bool,
    name: str | None,
    run_dir: str,
    data: Node | None = None,
    model: Node | None,
    weights: Node,
    probe: Node | None,
    trainer: Node,
) -> Node:
    """Score a checkpoint or weights.

    Args:
        run: Folder of a run; it determines data and model.
        checkpoint: Which of the run's checkpoints.
        split: Which split of the data; `train` without augmentation.
        image_size: Height and width of the model's input in pixels, or [height, width]; with `model=auto` those of
            the weights. None: the run's.
        batch_size: Images of a batch, over all devices. None: the run's.
        seed: Seed of weights that are drawn at random.
        data_dir: Folder of the data sets; missing ones are downloaded to it. None: the run's.
        features_dir: Folder in which a probe caches features.
        fit_temperature: Fit a temperature, which divides the best checkpoint's logits, to the validation split, and
            write it to RUN/evaluation/temperature.json.
        test_dir: Folder of another test set, of a run or weights: one folder for each class.
        test_set: How its labels are read and which logits compete: `folders` are named like classes or are WordNet's
            ids; of ImageNet-A and -R 200 classes compete; `imagenet-real` has several right labels for an image of
            ImageNet's validation split, whose files are in `test_dir` or folders in it.
        class_map: YAML or JSON file with a class of the network for each of the `folders`: its name or number, a list
            of classes that are all right, or null to leave the folder out.
        corruptions: Also measure errors on images that are corrupted as in ImageNet-C: `all`, or a list of names.
        severities: Of the corruptions, from 1 to 5.
        frost_dir: Folder of frost1.png to frost3.png, frost4.jpg and frost5.jpg, without which `all` has no frost.
        wandb: Log scores and pictures to the run's page at wandb, if its training was logged there.
        name: Name of the results' folder, made of the data, the model and the image size. None: of a run.
        run_dir: Folder of the results. Set by the program; choose another with `hydra.run.dir`.
        data: The data set on which weights are evaluated, if not a run's.
        model: The network, if not a run's; `model.weights` names its weights.
        weights: How the weights that `model.weights` names are loaded.
        probe: A classifier on the features before the head, to be scored in place of the head.
        trainer: lightning.Trainer: devices and precision.
    """
    from lightning import seed_everything

    from vitlab.config import instantiate
    from vitlab.evaluation import calibration, judgement, probes, robustness, run_report, test_sets
    from vitlab.evaluation.trained_model import TEMPERATURE, load_model
    from vitlab.runs import folder
    from vitlab.storage import safe_load
    from vitlab.storage.atomic import atomic_write
    from vitlab.training import build
    from vitlab.training.classifier import Classifier, logged_scores

    out, averaged_from = Path(run_dir), None
    seed_everything(seed, verbose=False)  # the same weights in every rank, also if they are random
    if run is not None:
        trainer["precision"] = trainer["precision"] or folder.read_config(Path(run))["trainer"]["precision"]
    if test_dir is not None:
        trained, options = (
            load_model(run or weights["source"], checkpoint=checkpoint),
            {"batch_size": batch_size or 256},
        )
        built = test_sets.build_test(trained, Path(test_dir), test_set, class_map, seed=seed, **options)
        network, datamodule, accepted = built
        module = Classifier(network, num_classes=datamodule.num_classes)
        module.accepted = accepted
        subject: Node = {"run": run or weights["source"], "split": split, "test_set": test_set, "test_dir": test_dir}
    elif run is None:
        assert data is not None
        assert model is not None  # checked before the start
        datamodule = build.build_data(data)
        module = build.build_classifier(model, datamodule, {}, weights=weights, own_head=probe is None)
        subject = {"weights": weights["source"], "split": split}
    else:
        config, file = folder.read_config(Path(run)), folder.checkpoint_file(Path(run), checkpoint)
        model, data = config["model"], folder.data_without_scan(config["data"], Path(run))
        if batch_size is not None:
            data |= {"batch_size": batch_size, "eval_batch_size": batch_size}
        datamodule = build.build_data(data)
        module = build.build_classifier(model, datamodule, config["classifier"])
        safe_load.verify_checkpoint(file)
        state = safe_load.load_checkpoint(file)
        averaged_from = state.get("current_model_state")
        module.load_state_dict(state["state_dict"])
        subject = {"run": run, "split": split, "checkpoint": str(file)}
    tester = build.build_trainer(trainer, run_dir=out)
    if probe is not None:
        built, cache = instantiate.build_object(probe), Path(features_dir)
        results = probes.measure(built, module.network, datamodule, tester, split=split, model=model, folder=cache)
        probes.log_results(results, split, out)
        return {**results, **subject}
    if fit_temperature:
        module.split = datamodule.tested = "val"
        logits = judgement.collect_rows(tester, module, datamodule, out, lambda logits, _: logits)
        if logits is not None:
            fitted = calibration.fit_temperature(logits, datamodule.split("val").labels)
            log.info("temperature %.4f, fitted to %d validation images", fitted, len(logits))
            atomic_write(Path(str(run)) / TEMPERATURE, json.dumps({"temperature": fitted}))
        tester.strategy.barrier("temperature")
    known = Path(run) / TEMPERATURE if run and checkpoint == "best" else None
    temperature = json.loads(known.read_text())["temperature"] if known and known.is_file() else None
    module.split = datamodule.tested = split
    rows_of = partial(judgement.image_rows, temperature=temperature)
    rows = judgement.collect_rows(tester, module, datamodule, out, rows_of)
    results, raw = {**logged_scores(tester, split), **subject}, None
    if corruptions is not None:
        robust = robustness.measure(tester, module, datamodule, out, corruptions, severities, frost_dir)
        log.info("mean error on corrupted images %.2f %%", 100 * robust["mean_error"])
        results["corruptions"] = robust
    if averaged_from is not None:
        module.load_state_dict(averaged_from)
        module.split = "raw"
        raw = judgement.collect_rows(tester, module, datamodule, out)
        results |= logged_scores(tester, "raw")
    if rows is not None:
        about = {**subject, "temperature": temperature}
        results["judgement"] = judgement.write_judgement(out, rows, datamodule, about=about, raw=raw)["scores"]
        log.info("report: %s", run_report.write_run_report(Path(run)) if run else run_report.write_report(out, [out]))
    build.log_results(results, out)
    return results


if __name__ == "__main__":
    main()
