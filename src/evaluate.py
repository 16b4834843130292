"""Score a run's checkpoint on a split of its data, or any weights on any data.

    python src/evaluate.py run=runs/NAME/STAMP split=test
    python src/evaluate.py run=runs/NAME/STAMP probe=linear
    python src/evaluate.py model.weights=timm:vit_small_patch14_dinov2 data=cifar100 image_size=224 probe=linear
    python src/evaluate.py model.weights=hf:google/vit-base-patch16-224 data=image_folder data_dir=imagenet
    python src/evaluate.py model=timm model.model_name=resnet18 model.pretrained=true data=cifar100 probe=knn
    python src/evaluate.py run=runs/NAME/STAMP fit_temperature=true
    python src/evaluate.py run=runs/NAME/STAMP test_dir=imagenet-a test_set=imagenet-a
    python src/evaluate.py run=runs/NAME/STAMP corruptions=all

Results are in `RUN/evaluation/CHECKPOINT-SPLIT` and on `RUN/report/index.html`. The head of weights from elsewhere must
have the classes of the data, in their order; a probe scores the features before it, which are cached.
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
    corruptions: Literal["all"] | tuple[str, ...] | None,
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
        test_dir: Folder of other images to test a run or weights on, in a folder for each class.
        test_set: Of `folders` the names are classes, WordNet's ids, or numbers. Of `imagenet-a` and `imagenet-r` 200
            classes compete; `imagenet-real` has several right labels for a file of ImageNet's validation split.
        class_map: YAML or JSON file, from folders to classes by name or number, a list that is all right, or null.
        corruptions: Also measure errors on images that are corrupted as in ImageNet-C: `all`, or a list.
        severities: Of the corruptions, from 1 to 5.
        frost_dir: Folder of the photographs for frost, which `all` otherwise leaves out.
        wandb: Log scores and pictures to the run's wandb run, if it has one, as `evaluate/SPLIT/...`.
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
    from vitlab.evaluation import calibration, judgement, probes, run_report, test_sets
    from vitlab.evaluation.corruptions import measure_corruptions
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
        trained = load_model(run or weights["source"], checkpoint=checkpoint)
        options: Node = {"batch_size": batch_size or 256, "seed": seed}
        network, datamodule, accepted = test_sets.build_test(trained, Path(test_dir), test_set, class_map, **options)
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
        given: Node = {"split": split, "model": model or {}, "folder": Path(features_dir)}
        results = probes.measure(instantiate.build_object(probe), module.network, datamodule, tester, **given)
        probes.log_results(results, split, out)
        return {**results, **subject}
    if fit_temperature:
        module.split = datamodule.tested = "val"
        logits = judgement.collect_rows(tester, module, datamodule, out, lambda logits, _: logits)
        if logits is not None:
            try:
                fitted = calibration.fit_temperature(logits, datamodule.split("val").labels)
                log.info("temperature %.4f, fitted to %d validation images", fitted, len(logits))
                atomic_write(Path(str(run)) / TEMPERATURE, json.dumps({"temperature": fitted}))
            except ValueError as error:
                log.warning("no temperature: %s", error)
        tester.strategy.barrier("temperature")
    known = Path(run) / TEMPERATURE if run and checkpoint == "best" else None
    temperature = json.loads(known.read_text())["temperature"] if known and known.is_file() else None
    module.split = datamodule.tested = split
    rows_of = partial(judgement.image_rows, temperature=temperature)
    rows = judgement.collect_rows(tester, module, datamodule, out, rows_of)
    results, raw = {**logged_scores(tester, split), **subject}, None
    if corruptions is not None:
        options = {"names": corruptions, "severities": severities, "frost_dir": frost_dir}
        results["corruptions"] = measure_corruptions(tester, module, datamodule, out, **options)
    if averaged_from is not None:
        module.load_state_dict(averaged_from)
        module.split = "raw"
        raw = judgement.collect_rows(tester, module, datamodule, out)
        results |= logged_scores(tester, "raw")
    if rows is not None:
        about = {**subject, "temperature": temperature}
        own = judgement.write_judgement(out, rows, datamodule, about=about, network=module.network, raw=raw)
        results["judgement"] = own["scores"]
        log.info("report: %s", run_report.write_run_report(Path(run)) if run else run_report.write_report(out, [out]))
        if "why" in own:
            log.info("explain the most confident errors: %s", own["why"])
        if run and wandb:
            run_report.log_evaluation(Path(run), out, own, results.get("corruptions", {}))
    build.log_results(results, out)
    return results


if __name__ == "__main__":
    main()
