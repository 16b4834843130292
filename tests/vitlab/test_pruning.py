"""A training asks after each validation whether it may go on, and never suffers from a study that doesn't answer."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from lightning import Trainer
from optuna.trial import TrialState

from conftest import Configure
from vitlab import build, study
from vitlab.pruning import Pruning, pruned

NEVER = optuna.pruners.NopPruner()
AT_ONCE = optuna.pruners.ThresholdPruner(lower=2.0)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A study `s` with one trial that runs."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with study.opened(url, "s", ["maximize"]) as opened:
        opened.ask()
    return url


@pytest.fixture
def trained(
    configure: Configure, small: list[str], make_trainer: Callable[..., Trainer]
) -> Callable[..., tuple[Trainer, Pruning]]:
    """A callback's settings -> the Trainer that has trained two epochs with it, or less."""

    def train(**settings: Any) -> tuple[Trainer, Pruning]:
        config = configure(*small, "schedule.warmup_steps=0")
        datamodule = build.data(config["data"])
        parts = {key: config[key] for key in ("optimizer", "schedule")}
        module = build.classifier(config["model"], datamodule, config["classifier"], **parts)
        callback = Pruning(**{"study": "s", "trial": 0, "monitor": "val/acc", **settings})
        trainer = make_trainer(callbacks=[callback], max_epochs=2, limit_train_batches=2)
        trainer.fit(module, datamodule)
        return trainer, callback

    return train


def reported(url: str) -> dict[int, float]:
    with study.opened(url, "s") as opened:
        return opened.get_trials()[0].intermediate_values


def test_scores_are_reported_by_validations_and_a_run_with_hope_trains_to_its_end(
    trained: Callable[..., tuple[Trainer, Pruning]], url: str
) -> None:
    trainer, callback = trained(storage=url, pruner=NEVER)
    assert trainer.current_epoch == 2
    assert not pruned(trainer)
    assert list(reported(url)) == [1, 2]
    assert reported(url)[2] == pytest.approx(float(trainer.callback_metrics["val/acc"]))
    assert callback.state_dict() == {"validations": 2}


def test_a_run_without_hope_ends_after_its_epoch(trained: Callable[..., tuple[Trainer, Pruning]], url: str) -> None:
    trainer, _ = trained(storage=url, pruner=AT_ONCE)
    assert trainer.current_epoch == 1
    assert trainer.global_step == 2
    assert pruned(trainer)
    assert list(reported(url)) == [1]


def test_a_validation_that_is_repeated_after_a_kill_is_reported_once(url: str) -> None:
    for score in (0.5, 0.25):  # of the process that was killed, and of the one that goes on
        callback = Pruning(storage=url, study="s", trial=0, monitor="val/acc", pruner=NEVER)
        callback.load_state_dict({"validations": 1})
        callback.judged(score)
    assert reported(url) == {1: 0.5}


def test_a_trial_that_is_over_is_told_nothing_more(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with study.opened(url, "s") as opened:
        opened.tell(0, state=TrialState.FAIL)
    callback = Pruning(storage=url, study="s", trial=0, monitor="val/acc", pruner=AT_ONCE)
    with caplog.at_level(logging.INFO):
        assert not callback.judged(0.5)
    assert "trial 0 is over" in caplog.text
    assert reported(url) == {}


def test_a_study_that_cant_be_asked_lets_the_run_train_to_its_end(
    trained: Callable[..., tuple[Trainer, Pruning]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, _ = trained(storage=f"sqlite:///{tmp_path / 'gone' / 'study.db'}", pruner=AT_ONCE)
    assert trainer.current_epoch == 2
    assert not pruned(trainer)
    assert caplog.text.count("trial 0 goes on unjudged: the study can't be asked") == 2
