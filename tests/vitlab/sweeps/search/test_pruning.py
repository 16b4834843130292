"""Pruning: scores by validation, and a training that continues if its study can't be reached."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from lightning import Trainer
from optuna.trial import TrialState

from conftest import Configure
from vitlab.sweeps.search.pruning import Pruning, is_pruned
from vitlab.sweeps.search.study import open_study
from vitlab.training import build

NEVER = optuna.pruners.NopPruner()
AT_ONCE = optuna.pruners.ThresholdPruner(lower=2.0)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A study `s` with one trial that runs."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with open_study(url, "s", ["max"]) as study:
        study.ask()
    return url


@pytest.fixture
def trained(
    configure: Configure, small: list[str], make_trainer: Callable[..., Trainer]
) -> Callable[..., tuple[Trainer, Pruning]]:
    """A callback's settings -> the Trainer that has trained two epochs with it, or less."""

    def train(**settings: Any) -> tuple[Trainer, Pruning]:
        config = configure(*small, "schedule.warmup_steps=0")
        datamodule = build.build_data(config["data"])
        parts = {key: config[key] for key in ("optimizer", "schedule")}
        module = build.build_classifier(config["model"], datamodule, config["classifier"], **parts)
        callback = Pruning(**{"study": "s", "trial": 0, "monitor": "val/acc", **settings})
        trainer = make_trainer(callbacks=[callback], max_epochs=2, limit_train_batches=2)
        trainer.fit(module, datamodule)
        return trainer, callback

    return train


def reported(url: str) -> dict[int, float]:
    with open_study(url, "s") as study:
        return study.get_trials()[0].intermediate_values


def test_scores_are_reported_by_validations_and_a_run_that_is_not_pruned_trains_to_its_end(
    trained: Callable[..., tuple[Trainer, Pruning]], url: str
) -> None:
    trainer, callback = trained(storage=url, pruner=NEVER)
    assert trainer.current_epoch == 2
    assert not is_pruned(trainer)
    assert list(reported(url)) == [1, 2]
    assert reported(url)[2] == pytest.approx(float(trainer.callback_metrics["val/acc"]))
    assert callback.state_dict() == {"validations": 2}


def test_a_pruned_run_ends_after_its_epoch(trained: Callable[..., tuple[Trainer, Pruning]], url: str) -> None:
    trainer, _ = trained(storage=url, pruner=AT_ONCE)
    assert trainer.current_epoch == 1
    assert trainer.global_step == 2
    assert is_pruned(trainer)
    assert list(reported(url)) == [1]


def test_a_validation_that_is_repeated_after_a_kill_is_reported_once(url: str) -> None:
    for score in (0.5, 0.25):  # of the process that was killed, and of the one that resumes
        callback = Pruning(storage=url, study="s", trial=0, monitor="val/acc", pruner=NEVER)
        callback.load_state_dict({"validations": 1})
        callback.should_prune(score)
    assert reported(url) == {1: 0.5}


def test_a_finished_trial_gets_no_more_scores(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with open_study(url, "s") as study:
        study.tell(0, state=TrialState.FAIL)
    callback = Pruning(storage=url, study="s", trial=0, monitor="val/acc", pruner=AT_ONCE)
    with caplog.at_level(logging.INFO):
        assert not callback.should_prune(0.5)
    assert "trial 0 is finished" in caplog.text
    assert reported(url) == {}


def test_a_study_that_cant_be_reached_lets_the_run_train_to_its_end(
    trained: Callable[..., tuple[Trainer, Pruning]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, _ = trained(storage=f"sqlite:///{tmp_path / 'gone' / 'study.db'}", pruner=AT_ONCE)
    assert trainer.current_epoch == 2
    assert not is_pruned(trainer)
    assert caplog.text.count("trial 0 is not pruned: the study can't be reached") == 2
