"""A trial that a search gives up: the training asks after each validation whether it may go on."""

import logging
from typing import Any

from lightning import Callback, LightningModule, Trainer

from vitlab.callbacks import fitting

log = logging.getLogger(__name__)


class Pruning(Callback):
    """Reports each validation's score to a study, and ends the training where the study's pruner sees no hope.

    The first rank reports and decides, all of them end together: after the epoch, saved, with their best checkpoint.
    The score counts as that of so many validations. A study that can't be reached lets the run train to its end.

    Args:
        storage: URL of the study's database.
        study: The study's name.
        trial: The number of the trial that is trained.
        monitor: The score: what the study is told of the whole run.
        pruner: One of Optuna's.
    """

    def __init__(self, *, storage: str, study: str, trial: int, monitor: str, pruner: Any) -> None:
        self.storage, self.study, self.trial = storage, study, trial
        self.monitor, self.pruner = monitor, pruner
        self.validations = 0
        self.pruned = False

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not fitting(trainer):
            return
        self.validations += 1
        hopeless = False
        if trainer.is_global_zero:
            try:
                hopeless = self.judged(float(trainer.callback_metrics[self.monitor]))
            except Exception as error:  # the other ranks wait for an answer, and the training is worth more than it
                log.warning("trial %d goes on unjudged: the study can't be asked (%s)", self.trial, error)
        self.pruned = bool(trainer.strategy.broadcast(hopeless))
        if self.pruned:
            log.warning(
                "pruned: %s %.4f after validation %d gives trial %d no hope",
                self.monitor,
                float(trainer.callback_metrics[self.monitor]),
                self.validations,
                self.trial,
            )
            trainer.should_stop = True

    def judged(self, score: float) -> bool:
        """Tells the study a score, once, and asks its pruner."""
        from optuna.trial import Trial

        from vitlab import study

        with study.opened(self.storage, self.study, pruner=self.pruner) as opened:
            trial = opened.get_trials(deepcopy=False)[self.trial]
            if trial.state.is_finished():  # somebody trains it further by hand
                log.info("trial %d is over: its study is told nothing more", self.trial)
                return False
            asked = Trial(opened, trial._trial_id)
            if self.validations not in trial.intermediate_values:  # one that was cut off after it had told
                asked.report(score, self.validations)
            return asked.should_prune()


def pruned(trainer: Trainer) -> bool:
    """Whether a run's training ended because it had no hope."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(callback.pruned for callback in callbacks if isinstance(callback, Pruning))
