"""A stored study: suggestions that are never made twice, trials that are taken up, counted and tried again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.study import Study
from optuna.trial import TrialState

from vitlab import build, study
from vitlab.space import read

SPACE, _ = read(
    ["lr=tag(log,interval(1e-4,1e-1))", "depth=int(interval(1,9))", "kind=choice(a,b)"],
    None,
    {"kind=b": {"extra": "interval(0,1)"}},
)
RANDOM = {"_target_": "optuna.samplers.RandomSampler", "seed": 0}
TPE = {"_target_": "optuna.samplers.TPESampler", "seed": 0, "n_startup_trials": 3, "multivariate": True}
QMC = {"_target_": "optuna.samplers.QMCSampler", "seed": 0, "scramble": True}
QMC["warn_independent_sampling"] = False


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def opened(url: str) -> Iterator[Study]:
    with study.opened(url, "s", ["maximize"], sampler=study.reseeded(RANDOM, build.make)) as found:
        yield found


def asked(opened: Study) -> list[str]:
    """The overrides of the next suggestion."""
    number = opened.ask().number
    return study.suggested(opened, opened.get_trials(deepcopy=False)[number], SPACE)


@pytest.mark.parametrize("node", [RANDOM, TPE, QMC], ids=["random", "tpe", "qmc"])
def test_a_search_that_is_opened_anew_makes_the_suggestions_that_one_in_a_go_makes(
    tmp_path: Path, node: dict[str, Any]
) -> None:
    def some(name: str, parts: list[int]) -> list[list[str]]:
        found = []
        for count in parts:  # each as a process of its own would
            sampler = study.reseeded(node, build.make)
            with study.opened(f"sqlite:///{tmp_path / name}.db", "s", ["maximize"], sampler=sampler) as opened:
                for _ in range(count):
                    found.append(asked(opened))
                    opened.tell(len(opened.trials) - 1, float(len(found) % 4))
        return found

    at_once, restarted = some("once", [6]), some("restarted", [1, 2, 1, 2])
    assert len({line for lines in at_once for line in lines if line.startswith("lr=")}) == 6, "none is made twice"
    assert restarted == at_once


def test_without_a_seed_suggestions_differ_from_search_to_search(tmp_path: Path) -> None:
    found = []
    for name in "ab":
        sampler = study.reseeded({**RANDOM, "seed": None}, build.make)
        with study.opened(f"sqlite:///{tmp_path / name}.db", "s", ["maximize"], sampler=sampler) as opened:
            found.append(asked(opened))
    assert found[0] != found[1]


def test_a_trial_that_was_cut_off_keeps_what_it_was_given_and_is_given_the_rest(url: str, opened: Study) -> None:
    trial = opened.ask()
    given = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    with study.opened(url, "s", ["maximize"], sampler=study.reseeded(RANDOM, build.make)) as later:
        (frozen,) = later.get_trials(states=[TrialState.RUNNING])
        lines = study.suggested(later, frozen, SPACE)
        assert lines[0] == f"lr={float(f'{given:.4g}')!r}"
        assert [line.split("=")[0] for line in lines[:3]] == ["lr", "depth", "kind"]
        assert study.suggested(later, frozen, SPACE) == lines, "asked again, it says the same"


def test_a_failed_trial_is_tried_again_with_the_same_parameters_so_often_and_counts_once(opened: Study) -> None:
    first = asked(opened)
    assert study.fail(opened, opened.trials[0], "it broke", retries=1)
    assert opened.trials[0].state == TrialState.FAIL
    assert opened.trials[0].user_attrs["reason"] == "it broke"
    assert study.to_be_tried(opened, n_trials=1)
    assert asked(opened) == first
    assert list(study.suggestions(opened)) == [0]
    assert not study.to_be_tried(opened, n_trials=1)
    assert study.to_be_tried(opened, n_trials=2)
    assert not study.fail(opened, opened.trials[1], "again", retries=1), "the limit is reached"
    assert study.suggestions(opened)[0].number == 1
    assert not study.to_be_tried(opened, n_trials=1)


def test_a_grid_is_queued_once_and_in_order(opened: Study) -> None:
    space, _ = read(["depth=range(1,4)", "kind=choice(a,b)"], None, None)
    combinations = list(space.combinations())
    study.queue(opened, combinations[:4])  # killed in the middle of it
    study.queue(opened, combinations)
    found = []
    while study.to_be_tried(opened, n_trials=0):
        trial = opened.trials[opened.ask().number]
        found.append(study.suggested(opened, trial, space))
    assert found == [[f"depth={d}", f"kind={k}"] for d in (1, 2, 3) for k in "ab"]


def test_what_is_no_database_is_told_in_a_line(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path / 'no' / 'folder' / 'a.db'}", "nonsense://x"):
        with pytest.raises(ConnectionError, match=r"^hydra\.sweeper\.storage="), study.opened(url, "s", ["maximize"]):
            pass
    with study.opened(f"sqlite:///{tmp_path / 'a.db'}", "s", ["maximize"]):
        pass
    with pytest.raises(KeyError), study.opened(f"sqlite:///{tmp_path / 'a.db'}", "other"):
        pass
