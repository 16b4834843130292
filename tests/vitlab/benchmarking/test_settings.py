"""Settings of a benchmark that can't be are told, each by value, knob and remedy."""

from typing import Any

import pytest
import torch

from vitlab.benchmarking.settings import problems
from vitlab.reader import Reader

GOOD: dict[str, Any] = {"parts": ["networks", "scaling"], "rounds": 3, "seconds": 0.1, "threads": None}


def devices(**settings: Any) -> dict[str, Any]:
    target = {"_target_": "vitlab.benchmarking.devices.Devices"}
    return {"parts": ["devices"], "accelerator": "cpu", "devices": target | settings}


TARGETS = {"advice": "advice.Advice", "loading": "images.Loading", "start": "start.Start"}
TARGETS |= {"training": "training.Training"}


def part(name: str, **settings: Any) -> dict[str, Any]:
    target = {"_target_": f"vitlab.benchmarking.{TARGETS[name]}"}
    return {"parts": [name], "accelerator": "cpu", name: target | settings}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"parts": []}, "parts=[] must name at least one part"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"seconds": -1}, "seconds=-1 must be 0 (a single call) or more"),
        ({"threads": 0}, "threads=0 must be at least 1, or null"),
        ({"networks": {"sizes": []}}, "networks.sizes=[] must have at least one entry"),
        ({"networks": {"modes": ["eager", "eager"]}}, "networks.modes=['eager', 'eager'] must have"),
        ({"parts": ["loading"], "loading": {"interpolations": []}}, "loading.interpolations=[] must have at least one"),
        ({"networks": {"batches": [0]}}, "networks.batches=[0] must be at least 1 each"),
        ({"scaling": {"tokens": [50, 60]}}, "scaling.tokens: 60 tokens are not [cls] and a square of patches"),
        ({"scaling": {"width": [64, 100]}}, "scaling.width: a width of 100 is not a multiple of 64"),
        ({"scaling": {"axes": ["depth"], "depth": [2]}}, "scaling.depth=[2] has one size: an exponent needs two"),
        ({"scaling": {"at": [197, 192, 0, 1]}}, "scaling.at=[197, 192, 0, 1] must be at least 1 each"),
        (devices(counts=[]), "devices.counts=[] must have at least one entry, and each once"),
        (devices(counts=[1, 0]), "devices.counts=[1, 0] must be at least 1 each"),
        (devices(counts=[1, 2], steps=9), "devices.steps=9 must be at least 10"),
        (devices(counts=[1, 2], warmup=-1), "devices.warmup=-1 must be at least 0"),
        (devices(counts=[2, 8], batch_size=3), "devices.batch_size=3 leaves nothing for some of 8 devices; use 4"),
        (devices(settings=["++trainer.devices=3"]), "devices.settings: ++trainer.devices=3 is for the part to set"),
        (devices(settings=["hydra.run.dir=runs/a"]), "devices.settings: hydra.run.dir=runs/a is for the part to set"),
        (devices(counts=[1, 2], model="vit_s61"), "devices: train.py would say: model=vit_s61: there is no such"),
        (devices(counts=[2], settings=["model.dmi=3"]), "devices: train.py would say: model.dmi=3: there is no such"),
        (devices(counts=[1], settings=["sede=1"]), "devices: train.py would say: sede=1: there is no such setting"),
        (devices(counts=[1], settings=["a=[b"]), "devices: train.py would say: "),
        (part("start", rounds=0), "start.rounds=0 must be at least 1"),
        (part("start", commands=["trainn"]), "start.commands: trainn is none of benchmark, "),
        (part("start", settings=["hydra.run.dir=a"]), "start.settings: hydra.run.dir=a is for the part to set"),
        (part("start", settings=["optimizer.lrr=3"]), "start.settings: train.py would say: optimizer.lrr=3: there is"),
        (
            part("training", default=False, networks={"vit_minni": 32}),
            "training.networks={vit_minni: 32}, training.batch_size=64, training.samples=1024: train.py would say: "
            "model=vit_minni: there is no such option; did you mean 'vit_mini'",
        ),
        (part("training", networks={"vit_mini": 0}), "training.networks={vit_mini: 0}: a side of images must be at"),
        (part("training", batch_size=0), "training.batch_size=0 must be at least 1"),
        (part("training", samples=10), "training.samples=10 must be at least 91"),
        (part("training", default=False, networks={}), "training.default=false and training.networks={} leave nothing"),
        (
            part("training", networks={}, settings=["optimizer.lrr=3"]),
            "training.settings: train.py would say: optimizer.lrr=3: there is no such setting; did you mean 'lr'?",
        ),
        (
            part("training", networks={}, settings=["model.mlp_ratio=2"]),
            "training: timm's twin has no such option as model.mlp_ratio=2; leave it out",
        ),
        (part("advice", image_size=90), "advice.image_size=90 is not cut into patches of 16; use 96"),
        (part("advice", dim=100), "advice.dim=100 is not a multiple of 64, the width of a head; use 128"),
        (part("advice", changes=[]), "advice.changes=[] must have at least one entry"),
    ],
)
def test_what_can_not_be_measured_is_told(change: dict[str, Any], problem: str) -> None:
    (found,) = problems(Reader(GOOD | change, set()))
    assert found.startswith(problem)


def test_all_that_is_wrong_with_a_part_is_told_at_once_also_beside_a_wrong_type() -> None:
    read = Reader(GOOD | part("loading", interpolations=["cubic"], images=0, batch_size=0), {"loading.interpolations"})
    assert list(problems(read)) == [
        "loading.batch_size=0 must be at least 1",
        "loading.images=0 must be at least 20",
    ]


@pytest.mark.parametrize("name", TARGETS)
def test_a_part_that_is_set_as_it_comes_is_right(name: str) -> None:
    assert list(problems(Reader(GOOD | part(name), set()))) == []


def test_more_devices_than_the_machine_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    change = devices(counts=[1, 2, 4]) | {"accelerator": "auto"}
    (found,) = problems(Reader(GOOD | change, set()))
    assert found.startswith("devices.counts=[1, 2, 4]: this machine has 2 GPUs; use 2 at most, or accelerator=cpu")


def test_settings_that_train_py_takes_and_no_file_lists_are_taken() -> None:
    change = devices(counts=[1, 2], strategies=["ddp", "fsdp"], settings=["trainer.sync_batchnorm=true"])
    assert list(problems(Reader(GOOD | change, set()))) == []


def test_nothing_is_wrong_with_good_settings_nor_with_other_commands() -> None:
    whole = GOOD | {"scaling": {"tokens": [50, 785], "axes": ["tokens"], "at": [197, 192, 4, 2]}}
    assert list(problems(Reader(whole, set()))) == []
    assert list(problems(Reader({"rounds": 0}, set()))) == []
