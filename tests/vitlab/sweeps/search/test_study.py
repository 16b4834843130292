"""A stored study: suggestions that are never repeated, and are kept when a trial is interrupted."""

from pathlib import Path
from typing import Any

import pytest
from optuna.study import Study
from optuna.trial import TrialState

from vitlab.config.schema import Node
from vitlab.sweeps.search.space import read_space
from vitlab.sweeps.search.study import build_sampler, open_study, suggest_overrides

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
