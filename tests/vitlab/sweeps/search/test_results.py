"""The best trials of a search: one, or the front of several objectives, with the commands that train them again."""

from pathlib import Path
from typing import Any

import optuna
import yaml
from omegaconf import OmegaConf
from optuna.study import StudyDirection
from optuna.trial import TrialState

from vitlab.sweeps.search.results import RESULTS, Search, write_results
from vitlab.sweeps.search.space import read_space

SPACE, SHARED = read_space(["lr=interval(0.1,1.0)", "seed=3"], None)


def search(folder: Path, objectives: dict[str, Any], *scores: tuple[float, ...]) -> Search:
    """A search with a trial for each score, and one that failed."""
    kinds = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
    study = optuna.create_study(
        directions=[kinds[goal] for goal in objectives.values()], sampler=optuna.samplers.RandomSampler(seed=0)
    )
    for values in scores:
        trial = study.ask()
        trial.suggest_float("lr", 0.1, 1.0)
        trial.set_user_attr("folder", f"job{trial.number}")
        study.tell(trial, values)
    study.tell(study.ask(), state=TrialState.FAIL)
    return Search(study, folder, SPACE, SHARED, objectives, {}, {}, OmegaConf.create(), None)  # type: ignore[arg-type]


def test_the_best_trial_has_the_command_that_trains_it_again(tmp_path: Path) -> None:
    results = write_results(search(tmp_path, {"val/acc": "max"}, (0.5,), (0.75,)))
    assert results["trials"] == {"complete": 2, "fail": 1}
    (row,) = results["solutions"]
    assert row["values"] == {"val/acc": 0.75}
    assert (row["trial"], row["folder"]) == (1, "job1")
    assert row["command"].endswith(f" seed=3 lr={row['params']['lr']}")
    assert yaml.safe_load((tmp_path / RESULTS).read_text()) == results


def test_several_objectives_have_the_front_of_the_trials_that_no_other_beats(tmp_path: Path) -> None:
    objectives = {"val/acc": "max", "parameters": "min"}
    results = write_results(search(tmp_path, objectives, (0.5, 10.0), (0.75, 20.0), (0.5, 30.0)))
    assert [row["trial"] for row in results["solutions"]] == [0, 1]
    assert results["solutions"][1]["values"] == {"val/acc": 0.75, "parameters": 20.0}
