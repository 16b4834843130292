"""Model soups: the mean of the weights of several runs of one architecture (Wortsman et al. 2022, arXiv 2203.05482).

uniform   the mean of all runs
greedy    runs from the best to the worst on validation, each kept if the mean with it is at least as good
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vitlab.config.schema import ConfigView
from vitlab.runs import folder
from vitlab.storage.atomic import atomic_path

if TYPE_CHECKING:  # the checks before the start need no torch
    from torch import Tensor

State = dict[str, "Tensor"]
Score = Callable[[State], float]  # accuracy on validation
# What must be equal of the data; augmentation and batches may differ
DATA = ("_target_", "source", "data_dir", "split_seed", "val_fraction", "image_size", "mean", "std", "interpolation")

log = logging.getLogger(__name__)


class Soup(NamedTuple):
    state: State
    members: list[int]  # positions of the runs in it
    score: float


def read_runs(runs: str | Sequence[str]) -> list[Path]:
    """The runs that are named, or those in a folder (a sweep), with a best checkpoint."""
    if not isinstance(runs, str):
        return [Path(run) for run in dict.fromkeys(runs)]
    return [run for run in folder.list_runs(Path(runs)) if folder.checkpoint_file(run, "best").is_file()]


def soup_problems(read: ConfigView) -> Iterator[str]:
    """Runs that can't be averaged: of other networks, data or splits, or without a best checkpoint."""
    runs = read.config.get("runs")
    if read.has_problem("runs") or not isinstance(runs, str | list):
        return
    members = read_runs(runs)
    if len(members) < 2:
        yield f"runs={runs}: a soup needs at least two runs with checkpoints/best.ckpt, and this has {len(members)}"
        return
    configs = []
    for run in members:
        try:
            configs.append(folder.read_config(run))
        except (OSError, folder.UnreadableRun) as error:
            yield f"runs: {error}; leave it out"
            return
        if not folder.checkpoint_file(run, "best").is_file():
            yield f"runs: {run} has no checkpoints/best.ckpt; leave it out"
            return
    first = configs[0]
    for run, config in zip(members[1:], configs[1:], strict=True):
        for key, names in (("model", {**first["model"], **config["model"]}), ("data", DATA)):
            if differ := [name for name in names if first[key].get(name) != config[key].get(name)]:
                yield f"runs: {run} and {members[0]} differ in {key}.{differ[0]}; a soup is of one network and split"
    if (out := read("out", str)) and (Path(out) / folder.CONFIG).exists():
        yield f"out={out} has a run already; name another folder"
    if read("method", str) == "greedy" and first["data"].get("val_fraction") == 0:
        yield "method=greedy chooses on validation, and these runs have none (data.val_fraction=0); use method=uniform"


def mean_state(states: Sequence[State]) -> State:
    """The mean of each tensor, computed in float64; counts, which aren't floating, are the first's."""
    import torch

    means = {name: torch.stack([state[name].double() for state in states]).mean(dim=0) for name in states[0]}
    return {name: means[name].to(x.dtype) if x.is_floating_point() else x for name, x in states[0].items()}


def cook(states: Sequence[State], method: Literal["greedy", "uniform"], score: Score) -> Soup:
    """Average the states of runs; `score` is called once for each run and each tried mean."""
    if method == "uniform":
        state = mean_state(states)
        return Soup(state, [*range(len(states))], score(state))
    scores = [score(state) for state in states]
    order = sorted(range(len(states)), key=lambda index: -scores[index])
    best = Soup(states[order[0]], order[:1], scores[order[0]])
    log.info("run %d: %.4f alone", order[0], best.score)
    for index in order[1:]:
        members = [*best.members, index]
        state = mean_state([states[member] for member in members])
        kept = (now := score(state)) >= best.score
        log.info("run %d: %.4f alone, the mean %.4f: %s", index, scores[index], now, "kept" if kept else "left out")
        best = Soup(state, members, now) if kept else best
    return best


def write_soup(soup: Soup, runs: Sequence[Path], out: Path) -> None:
    """Write a run folder with the soup as its best checkpoint: evaluate.py and export.py take it."""
    import torch

    from vitlab.storage import safe_load

    first = runs[soup.members[0]]
    content: dict[str, Any] = safe_load.load_checkpoint(folder.checkpoint_file(first, "best"))
    names = ("epoch", "global_step", "pytorch-lightning_version", "vitlab")
    kept = {name: content[name] for name in names if name in content}
    file = folder.checkpoint_file(out, "best")
    file.parent.mkdir(parents=True, exist_ok=True)
    folder.write_config(out, folder.read_config(first))
    with atomic_path(file, suffix="tmp") as temporary:
        torch.save({**kept, "state_dict": soup.state, "soup": [str(runs[m]) for m in soup.members]}, temporary)
