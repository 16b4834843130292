"""Changes that apply are tried in rounds with the configuration, and less than the noise is no gain."""

import pytest
import torch
from torch import Tensor

from doctor_fixtures import FEW_WORKERS, SlowData, profiled_run
from vitlab.data.augment import Augment
from vitlab.data.datamodule import MOST_WORKERS
from vitlab.diagnostics import advise
from vitlab.diagnostics.advise import Trial
from vitlab.diagnostics.measure import Overrides
from vitlab.distributed import environment
from vitlab.models.vit import VisionTransformer


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((1.5, 1.6, 1.4), "faster"),
        ((0.8, 0.8, 0.8), "slower"),
        ((1.02, 1.02, 1.02), "within noise"),
        ((1.1, 1.6, 0.7), "within noise"),
        ((0.9, 0.9, 1.06), "within noise"),
    ],
)
def test_less_than_the_spread_is_no_gain(gains: tuple[float, ...], verdict: str) -> None:
    assert Trial(overrides={"data.num_workers": 1}, gains=gains).verdict == verdict


def test_changes_that_apply_are_candidates_in_the_order_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    run = profiled_run()
    every = ["batch_size", "num_workers", "precision", "compile", "log_every_n_steps", "auto_augment"]
    assert advise.candidates(run, every, [0, 2]) == [
        {"batch_size": 64},
        {"data.num_workers": 2},
        {"trainer.precision": "bf16-mixed"},
        {"compile": True},
        {"trainer.log_every_n_steps": 50},
    ]
    run.datamodule.augment = Augment(auto_augment="randaugment")
    run.datamodule.batch_size = 1000
    run.trainer |= {"precision": "bf16-mixed", "log_every_n_steps": 50}
    others = advise.candidates(run, [kind for kind in every if kind != "num_workers"], None)
    assert others == [
        {"compile": True},
        {"data.augment.auto_augment": "none"},
    ]
    monkeypatch.setattr(environment, "cores", lambda: 128)
    counts = [list(change.values()) for change in advise.candidates(run, ["num_workers"], None)]
    assert counts == [[1], [2], [4], [8], [16]]
    assert MOST_WORKERS == 16


@FEW_WORKERS
def test_a_batch_that_does_not_fit_ends_its_own_trial_only() -> None:
    class Small(VisionTransformer):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 34:
                raise torch.OutOfMemoryError("no room")
            return super().forward(images)

    run = profiled_run()
    run.module.network.__class__ = Small
    changes: list[Overrides] = [{"batch_size": 64}, {"trainer.precision": "bf16-mixed"}]
    (failed, other), rates = advise.try_changes(run, changes, rounds=2, steps=1, warmup=1)
    assert (failed.verdict, failed.gains) == ("out of memory", ())
    assert len(other.gains) == len(rates) == 2


@FEW_WORKERS
def test_workers_gain_on_data_that_load_slowly() -> None:
    run = profiled_run(SlowData)
    timing = run.train({}, steps=4, warmup=1, stages=True)
    assert max(timing.parts, key=lambda name: timing.parts[name]) == "data_wait"
    (trial,), _ = advise.try_changes(run, [{"data.num_workers": 2}], rounds=1, steps=8, warmup=1)
    assert trial.gain > 1.1
