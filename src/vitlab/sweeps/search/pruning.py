"""Pruning: a trial reports each validation's score, and stops early if the study's pruner decides so."""

import logging
from typing import Any

from lightning import Callback, LightningModule, Trainer

from vitlab.training.checkpoints import is_fitting

log = logging.getLogger(__name__)


class Pruning(Callback):
    """Report each validation's score to a study, and stop the training of a trial that its pruner ends.

    The first rank reports and decides; all ranks stop together after the epoch, saved, with their best checkpoint. If
    the study's database (the URL `storage`) can't be reached, the trial is not pruned.
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
        if not is_fitting(trainer):
            return
        self.validations += 1
        score, prune = float(trainer.callback_metrics[self.monitor]), False
        if trainer.is_global_zero:
            try:
                prune = self.should_prune(score)
            except Exception as error:  # must end neither the training nor the wait of the other ranks
                log.warning("trial %d is not pruned: the study can't be reached (%s)", self.trial, error)
        self.pruned = bool(trainer.strategy.broadcast(prune))
        if self.pruned:
            place = (self.monitor, score, self.validations)
            log.warning("trial %d is pruned: %s %.4f after validation %d", self.trial, *place)
            trainer.should_stop = True

    def should_prune(self, score: float) -> bool:
        """Report a score, once per validation, and ask the pruner."""
        from optuna.trial import Trial

        from vitlab.sweeps.search.study import open_study

        with open_study(self.storage, self.study, pruner=self.pruner) as study:
            trial = study.get_trials(deepcopy=False)[self.trial]
            if trial.state.is_finished():  # the run was resumed without the search
                log.info("trial %d is finished: its study gets no more scores", self.trial)
                return False
            running = Trial(study, trial._trial_id)
            if self.validations not in trial.intermediate_values:  # else it was killed after the report
                running.report(score, self.validations)
            return running.should_prune()


def is_pruned(trainer: Trainer) -> bool:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(callback.pruned for callback in callbacks if isinstance(callback, Pruning))
