"""Measures any weights on any data without training them: `python src/probe.py model.weights=SOURCE`.

    python src/probe.py model.weights=timm:vit_small_patch14_dinov2 data=cifar100 image_size=224 probe=linear
    python src/probe.py model.weights=hf:google/vit-base-patch16-224 data=image_folder data_dir=imagenet probe=head
    python src/probe.py model=timm model.model_name=resnet18 model.pretrained=true data=cifar100 probe=knn

What `src/evaluate.py run=...` does to a run's checkpoint, for a model and data that no run has brought together.
Features are kept in `features_dir`, where another probe of the same weights and images finds them. With `probe=head`
the weights' own head is scored: its classes must be the data's, in their order.
"""

from pathlib import Path
from typing import Literal

from vitlab.cli.command import command
from vitlab.config.schema import Node
from vitlab.evaluation import checks


@command("probe", check=checks.probe_problems)
def main(
    *,
    image_size: int | tuple[int, int],
    batch_size: int,
    seed: int,
    split: Literal["val", "test"],
    data_dir: str,
    features_dir: str,
    name: str,
    run_dir: str,
    data: Node,
    model: Node,
    weights: Node,
    probe: Node,
    trainer: Node,
) -> Node:
    from lightning import seed_everything

    from vitlab.config import instantiate
    from vitlab.evaluation import probes
    from vitlab.training import build
    from vitlab.training.monitor import logged_scores

    datamodule = build.build_data(data)
    seed_everything(seed, verbose=False)  # the same weights in every rank, also where they are drawn at random
    tester, asked = build.build_trainer(trainer, run_dir=Path(run_dir)), instantiate.build_object(probe)
    if isinstance(asked, probes.Head):
        module = build.build_classifier(model, datamodule, {}, weights=weights, own_head=True)
        module.split = datamodule.tested = split
        tester.test(module, datamodule, verbose=False)
        results = {**logged_scores(tester, split), "weights": weights["source"], "split": split}
        build.log_results(results, Path(run_dir))
        return results
    network = build.build_classifier(model, datamodule, {}, weights=weights).network
    parts: Node = {"model": model, "folder": Path(features_dir)}
    results = probes.measure(asked, network, datamodule, tester, split=split, **parts)
    probes.tell(results, split, Path(run_dir))
    return results


if __name__ == "__main__":
    main()
