"""Scores a run's checkpoint on a split of its data: `python src/evaluate.py run=runs/NAME/STAMP split=test`.

On the test split, with the best checkpoint, that is the number that training gave. It goes to the console and to
`RUN/evaluation/CHECKPOINT-SPLIT/results.json`; the run itself is left as it is.

`probe=linear` or `probe=knn` measures the features before the head instead (`vitlab.evaluation.probes`). They are
computed once, and kept in `RUN/features/`. `src/probe.py` does the same to weights that are no run's.
"""

from pathlib import Path
from typing import Literal

from vitlab.cli.command import command
from vitlab.config.schema import Node
from vitlab.evaluation import checks


@command("evaluate", check=checks.evaluation_problems)
def main(
    *,
    run: str,
    split: Literal["train", "val", "test"],
    checkpoint: Literal["best", "last"],
    batch_size: int | None,
    probe: Node | None,
    run_dir: str,
    trainer: Node,
) -> Node:
    import torch

    from vitlab.config import instantiate
    from vitlab.evaluation import probes
    from vitlab.runs import folder
    from vitlab.storage import safe_load
    from vitlab.training import build
    from vitlab.training.monitor import logged_scores

    config = folder.read_config(Path(run))
    if trainer["precision"] is None:
        trainer["precision"] = config["trainer"]["precision"]
    if batch_size is not None:
        config["data"] |= {"batch_size": batch_size, "eval_batch_size": batch_size}
    # the run has looked at its images, and listed what it left out
    seen = {"scan": "none", "skipped_file": str(Path(run) / "skipped.csv")}
    config["data"] |= {k: v for k, v in seen.items() if k in config["data"]}
    datamodule = build.build_data(config["data"])
    module = build.build_classifier(config["model"], datamodule, config["classifier"])
    module.split = datamodule.tested = split
    file = folder.checkpoint_file(Path(run), checkpoint)
    safe_load.verify_checkpoint(file)
    with safe_load.explain_unsafe_pickle(file):
        module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["state_dict"])

    tester = build.build_trainer(trainer, run_dir=Path(run_dir))
    of = {"run": run, "split": split, "checkpoint": str(file)}
    asked = instantiate.build_object(probe) if probe is not None else probes.Head()
    if not isinstance(asked, probes.Head):
        parts = {"model": config["model"], "folder": Path(run) / "features"}
        results = probes.measure(asked, module.network, datamodule, tester, split=split, **parts)
        probes.tell(results, split, Path(run_dir))
        return {**results, **of}
    tester.test(module, datamodule, verbose=False)
    results = {**logged_scores(tester, split), **of}
    build.log_results(results, Path(run_dir))
    return results


if __name__ == "__main__":
    main()
