"""The training program as it is composed, and a bare loop that computes the same, in turns."""

import math

import pytest
import torch

from vitlab.benchmark import training
from vitlab.benchmark.case import OURS
from vitlab.benchmark.checks import train_config
from vitlab.benchmark.goals import outcomes
from vitlab.benchmark.training import BARE, Training
from vitlab.config.schema import Node
from vitlab.data.datamodule import DataModule
from vitlab.diagnostics.timing import Clock
from vitlab.training.classifier import Classifier

SMALL = ("batch_size=16", "trainer.log_every_n_steps=3", "model.drop_path=0.0")  # both draw from one generator


def test_both_train_alike_and_the_goal_has_its_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    build_training = training.build_training

    def record(config: Node) -> tuple[DataModule, Classifier]:
        torch.manual_seed(0)  # the same first weights
        made.append(build_training(config))
        return made[-1]

    monkeypatch.setattr(training, "build_training", record)
    before = torch.are_deterministic_algorithms_enabled()
    (case,) = Training(default=False, networks={"vit_mini": 8}, settings=SMALL).cases(Clock(rounds=2, seconds=0.0))
    assert torch.are_deterministic_algorithms_enabled() == before
    ours, theirs = (module.network for _, module in made)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(other, one, msg=name, atol=1e-6, rtol=1e-5)
    assert case.name == "vit_mini at 8 px, 16 images a step"
    assert [m.name for m in case.measured] == [OURS, BARE]
    for m in case.measured:
        assert len(m.seconds) == 2, "the first turn is a warm-up"
        assert all(math.isfinite(value) and value > 0 for value in (m.rate, *m.figures.values()))
        assert {*m.figures} == {"MFLOPs", "MFU %"}
        assert 15 <= m.items <= 16
    (outcome,) = outcomes(case)
    assert "x bare loop" in outcome[1]


def test_the_first_case_is_the_default_run_without_its_logger() -> None:
    runs = Training().runs("cpu")
    assert [*runs] == ["the default run", "vit_mini at 32 px", "vit_s16 at 64 px"]
    plain, default = train_config(["trainer.accelerator=cpu"]), train_config(runs["the default run"])
    assert {key for key in plain if plain[key] != default[key]} == {"logger", "schedule"}
