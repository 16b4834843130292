"""A stored study: suggestions that are never repeated, and are kept when a trial is interrupted."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from omegaconf import OmegaConf
from optuna.study import Study, StudyDirection
from optuna.trial import TrialState

from vitlab.config.schema import Node
from vitlab.sweeps.search.space import read_space
from vitlab.sweeps.search.study import RESULTS, Search, build_sampler, open_study, suggest_overrides, write_results

SPACE, _ = read_space(["lr=tag(log,interval(1e-4,1e-1))", "depth=int(interval(1,9))", "kind=choice(a,b)"], None)
RANDOM = {"_target_": "optuna.samplers.RandomSampler", "seed": 0}
TPE = {"_target_": "optuna.samplers.TPESampler", "seed": 0, "n_startup_trials": 3, "multivariate": True}
QMC = {"_target_": "optuna.samplers.QMCSampler", "seed": 0, "scramble": True}
QMC["warn_independent_sampling"] = False


def next_overrides(study: Study, sampler: Node) -> list[str]:
    """The overrides of the next suggestion."""
    number = study.ask().number
    return suggest_overrides(study, study.get_trials(deepcopy=False)[number], SPACE, sampler)


@pytest.mark.parametrize("node", [RANDOM, TPE, QMC], ids=["random", "tpe", "qmc"])
def test_a_search_that_is_restarted_suggests_what_one_without_a_restart_does(
    tmp_path: Path, node: dict[str, Any]
) -> None:
    def suggestions(name: str, parts: list[int]) -> list[list[str]]:
        found = []
        for count in parts:  # each as a process of its own would
            sampler = build_sampler(node)
            with open_study(f"sqlite:///{tmp_path / name}.db", "s", ["max"], sampler=sampler) as study:
                for _ in range(count):
                    found.append(next_overrides(study, node))
                    study.tell(len(study.trials) - 1, float(len(found) % 4))
        return found

    at_once, restarted = suggestions("once", [6]), suggestions("restarted", [1, 2, 1, 2])
    assert len({line for lines in at_once for line in lines if line.startswith("lr=")}) == 6, "none is repeated"
    assert restarted == at_once


def test_without_a_seed_suggestions_differ_from_search_to_search(tmp_path: Path) -> None:
    found = []
    for name in "ab":
        node = {**RANDOM, "seed": None}
        with open_study(f"sqlite:///{tmp_path / name}.db", "s", ["max"], sampler=build_sampler(node)) as study:
            found.append(next_overrides(study, node))
    assert found[0] != found[1]


def test_an_interrupted_trial_keeps_its_parameters_and_gets_the_missing_ones(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with open_study(url, "s", ["max"], sampler=build_sampler(RANDOM)) as study:
        given = study.ask().suggest_float("lr", 1e-4, 1e-1, log=True)
    with open_study(url, "s", ["max"], sampler=build_sampler(RANDOM)) as study:
        (trial,) = study.get_trials(states=[TrialState.RUNNING])
        lines = suggest_overrides(study, trial, SPACE, RANDOM)
        assert lines[0] == f"lr={float(f'{given:.4g}')!r}"
        assert [line.split("=")[0] for line in lines] == ["lr", "depth", "kind"]
        assert suggest_overrides(study, trial, SPACE, RANDOM) == lines, "the same when it is interrupted again"


def test_a_study_is_created_only_if_asked_to(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with pytest.raises(KeyError), open_study(url, "s"):
        pass
    with open_study(url, "s", ["max"]):
        pass
    with open_study(url, "s") as study:
        assert study.trials == []


ONE_RATE, SHARED = read_space(["lr=interval(0.1,1.0)", "seed=3"], None)


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
    return Search(study, folder, ONE_RATE, SHARED, objectives, {}, {}, OmegaConf.create(), None)  # type: ignore[arg-type]


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
