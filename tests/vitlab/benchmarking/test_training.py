"""The training program as it is composed, paced step by step beside a bare loop that computes the same."""

import math
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from vitlab import build
from vitlab.benchmarking import training
from vitlab.benchmarking.networks import LIMIT
from vitlab.benchmarking.timing import OURS, Case, Clock
from vitlab.callbacks import Monitor
from vitlab.data.datamodule import DataModule
from vitlab.data.dataset import EvalBatch
from vitlab.nonfinite import NonFinite
from vitlab.schema import Node
from vitlab.throughput import Meter

SMALL = ["batch_size=16", "data=fake", "data.source.samples=96", "image_size=8", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def config() -> Node:
    return training.composed([*SMALL, "logger=csv", "schedule.warmup_steps=0"])


@pytest.fixture(scope="module")
def case() -> Case:
    part = training.Training(default=False, networks={"vit_mini": 8}, batch_size=16, samples=96)
    streams = sys.stdout, sys.stderr
    (found,) = part.cases(Clock(rounds=2, seconds=0.0))
    assert (sys.stdout, sys.stderr) == streams, "what is told afterwards has to be seen"
    return found


def test_all_contenders_train_and_the_goals_have_rivals(case: Case) -> None:
    assert [measured.name for measured in case.measured] == [OURS, training.BARE, training.TIMM, LIMIT]
    assert all(math.isfinite(measured.rate) and measured.rate > 0 for measured in case.measured)
    (images,) = {measured.items for measured in case.measured[:-1]}
    assert 14 <= images <= 15, "86 images are cut into six steps"
    assert [(goal.least, rival) for goal, rival, _ in case.outcomes()] == [(0.97, training.BARE), (1.0, training.TIMM)]


def test_the_shares_of_time_are_all_there_and_come_to_a_hundred_percent(case: Case) -> None:
    figures = {"MFLOPs", "MFU %"}
    assert all(figures <= {*measured.figures} for measured in case.measured[:-1])
    shares = {name: value for name, value in case[OURS].figures.items() if name not in figures}
    assert [*shares] == [f"{name} %" for name in ("data", "step", "logging", "evaluation", "checkpoints", "other")]
    assert sum(shares.values()) == pytest.approx(100)
    assert all(share > 0 for share in shares.values())


def test_each_second_counts_once_and_where_it_belongs(config: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def slower(kind: type, hook: str, seconds: float) -> None:
        hooked = getattr(kind, hook)

        def slow(self: Any, *arguments: Any) -> Any:
            if hook != "on_after_batch_transfer" or isinstance(arguments[0], EvalBatch):
                time.sleep(seconds)
            return hooked(self, *arguments)

        monkeypatch.setattr(kind, hook, slow)

    slower(Monitor, "on_before_optimizer_step", 0.1)  # within a step
    slower(NonFinite, "on_before_backward", 0.1)  # within its backward pass
    slower(Monitor, "on_validation_end", 0.2)
    slower(DataModule, "on_after_batch_transfer", 0.7)  # one batch is validated
    slower(Monitor, "on_save_checkpoint", 0.3)
    slower(Meter, "_look", 2.0)  # what a run does once, at its first row
    with training.process_as_before():
        spent, seconds = training.epoch(config)
    assert sum(spent.values()) == pytest.approx(seconds), "nothing twice"
    assert 6 * 2 * 0.1 + 0.2 <= spent["logging"] < seconds - 0.7 - 0.3
    assert spent["logging"] < 6 * 2 * 0.1 + 0.2 + 2.0
    assert spent["evaluation"] >= 0.7
    assert spent["checkpoints"] >= 0.3
    assert spent["step"] < 6 * 0.1
    assert spent["data"] < 0.7
    assert spent["other"] > 0


def test_what_the_process_was_set_to_is_as_before_and_no_fit_is_left(case: Case) -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    assert [thread.name for thread in threading.enumerate() if "_run" in thread.name] == []


@pytest.fixture
def fit(config: Node) -> Iterator[training.Fit]:
    with training.running(config, theirs=False) as running:
        yield running


def test_a_fit_goes_on_for_as_many_steps_as_it_is_asked_for(fit: training.Fit) -> None:
    assert fit.trainer.global_step == 0
    for count, total in ((1, 1), (4, 5), (3, 8)):  # an epoch has six
        fit.steps(count)
        assert fit.trainer.global_step == total


def test_the_bare_loop_takes_the_very_steps_that_the_trainer_takes(fit: training.Fit, config: Node) -> None:
    _, module = training.made(config)
    module.load_state_dict(fit.module.state_dict())
    fit.module.network.load_state_dict(module.network.state_dict())
    fit.steps(3)
    step = training.bare(config, fit)
    by_name = dict(zip(step.__code__.co_freevars, step.__closure__ or (), strict=True))
    network = by_name["network"].cell_contents
    network.load_state_dict(module.network.state_dict())
    for _ in range(3):
        step()
    for (name, ours), theirs in zip(fit.module.network.named_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(theirs, ours, msg=name, atol=1e-6, rtol=1e-5)


def test_an_error_of_a_fit_is_raised_where_its_steps_are_asked_for(config: Node) -> None:
    with training.running(config, theirs=False) as fit:
        fit.module.training_step = lambda *_: 1 / 0  # type: ignore[assignment, method-assign]
        with pytest.raises(ZeroDivisionError):
            fit.steps(1)


def test_timms_twin_has_the_parameters_that_ours_has_and_learns_its_positions(config: Node) -> None:
    datamodule = build.data(config["data"])
    ours = build.classifier(config["model"], datamodule, config["classifier"]).network
    theirs = training.timm_twin(config["model"], num_classes=10, channels=3)
    shapes = [{k: v.shape for k, v in network.state_dict().items() if k != "pos_embed"} for network in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_the_first_case_is_the_default_run_less_its_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Case(part="training", name="", unit="images", measured=[])] * 2
    asked: list[tuple[Node, str]] = []

    def case(part: training.Training, clock: Clock, config: Node, name: str) -> Case:
        asked.append((config, name))
        return cases[len(asked) - 1]

    monkeypatch.setattr(training.Training, "case", case)
    part = training.Training(networks={"vit_mini": 8}, batch_size=16, samples=96)
    assert list(part.cases(Clock(rounds=1, seconds=0.0))) == cases
    (default, name), (_, other) = asked
    assert name == "the default run, 64 images a step"
    assert other == "vit_mini at 8 px, 16 images a step"
    plain = training.composed(["trainer.accelerator=cpu"])
    differing = {key for key in plain if plain[key] != default[key]}
    assert differing == {"logger", "schedule"}


@pytest.mark.parametrize(
    ("setting", "counts"),
    [
        ("model.mlp_ratio=2", "135,562 parameters besides positions, and timm's 201,610"),
        ("model.dropout=0.1", "201,610 parameters besides positions, and timm's 201,610"),
    ],
)
def test_a_network_that_timms_twin_would_not_be_is_refused(setting: str, counts: str) -> None:
    with pytest.raises(ValueError, match=f"{counts}: timm's twin has no such option as {setting}"):
        training.made(training.composed([*SMALL, setting]), theirs=True)


def test_settings_that_can_not_be_composed_are_an_error() -> None:
    with pytest.raises(Exception, match="no_such"):
        training.composed(["model=no_such"])
