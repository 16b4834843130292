"""Average the weights of several runs: a model soup, which may be better than each of them and costs no more.

    python src/soup.py runs=runs/sweeps/NAME                         greedy: keep a run if validation doesn't get worse
    python src/soup.py runs=[runs/A/STAMP,runs/B/STAMP] method=uniform

The runs are of one network, and best if fine-tuned from the same weights: runs from scratch have no mean that works.
The folder is a run: `python src/evaluate.py run=FOLDER` and `src/export.py run=FOLDER ...` take it.
"""

import logging
from pathlib import Path
from typing import Literal

from vitlab.cli.command import command
from vitlab.config.schema import Node
from vitlab.evaluation import soup

log = logging.getLogger(__name__)


@command("soup", check=soup.soup_problems)
def main(*, runs: str | list[str], method: Literal["greedy", "uniform"], trainer: Node, out: str, run_dir: str) -> Node:
    """Average runs.

    Args:
        runs: A folder of runs, such as a sweep, or a list of run folders.
        method: `greedy` keeps a run if the mean with it scores at least as high on validation, from the best to the
            worst; `uniform` keeps all.
        trainer: lightning.Trainer: devices and precision of the validations.
        out: Folder of the soup, which is a run folder.
        run_dir: Folder of the log. Set by the program.
    """
    from vitlab.runs import folder
    from vitlab.storage import safe_load
    from vitlab.training import build
    from vitlab.training.classifier import logged_scores

    members = soup.read_runs(runs)
    files = [folder.checkpoint_file(run, "best") for run in members]
    for file in files:
        safe_load.verify_checkpoint(file)
    config = folder.read_config(members[0])
    datamodule = build.build_data(folder.data_without_scan(config["data"], members[0]))
    module = build.build_classifier(config["model"], datamodule, config["classifier"])
    trainer = {**trainer, "precision": trainer["precision"] or config["trainer"]["precision"]}
    tester = build.build_trainer(trainer, run_dir=Path(run_dir))

    def score(state: soup.State, split: Literal["val", "test"] = "val") -> Node:
        module.load_state_dict(state)
        module.split = datamodule.tested = split
        tester.test(module, datamodule, verbose=False)
        return logged_scores(tester, split)

    splits: list[Literal["val", "test"]] = ["val", "test"] if datamodule.samples["val"] else ["test"]
    states = [safe_load.load_checkpoint(file)["state_dict"] for file in files]
    made = soup.cook(states, method, lambda state: score(state, splits[0])[f"{splits[0]}/acc"])
    results = {key: value for split in splits for key, value in score(made.state, split).items()}
    if tester.is_global_zero:
        soup.write_soup(made, members, Path(out))
        build.log_results(results, Path(out))
    return {**results, "runs": [str(members[index]) for index in made.members], "method": method, "soup": out}


if __name__ == "__main__":
    main()
