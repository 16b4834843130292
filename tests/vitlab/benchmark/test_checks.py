"""Settings of a benchmark that can't be measured are refused, each with value, knob and remedy."""

from typing import Any

import pytest
import torch

from vitlab.benchmark import checks
from vitlab.config.view import ConfigView

GOOD: dict[str, Any] = {"parts": ["networks", "scaling"], "rounds": 3, "seconds": 0.1, "threads": None}
TARGETS = {"devices": "devices.Devices", "loading": "loading.Loading", "start": "startup.Startup"}
TARGETS |= {"training": "training.Training"}


def part(name: str, **settings: Any) -> dict[str, Any]:
    target = {"_target_": f"vitlab.benchmark.{TARGETS[name]}"}
    return {"parts": [name], "accelerator": "cpu", name: target | settings}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"parts": []}, "parts=[] must name at least one part"),
        (part("devices", counts=[1, 0]), "devices.counts=[1, 0] must be at least 1"),
        (part("devices", settings=["trainer.devices=3"]), "devices.settings: trainer.devices=3 is set by this part"),
        (part("devices", counts=[2, 8], batch_size=1), "devices: train.py refuses batch_size=2"),
        (part("devices", counts=[2], settings=["model.dmi=3"]), "devices: train.py refuses model.dmi=3: there is no"),
        (part("devices", counts=[1], settings=["sede=1"]), "devices: train.py refuses sede: there is no such setting"),
        (part("devices", counts=[1], settings=["a=[b"]), "devices: train.py refuses "),
        (part("training", default=False, networks={"vit_minni": 32}), "training: train.py refuses "),
        (part("loading", images=31), "loading.images=31 must be at least loading.batch_size=32"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], problem: str) -> None:
    (line,) = checks.benchmark_problems(ConfigView(GOOD | change, set()))
    assert line.startswith(problem)


def test_a_part_is_checked_next_to_a_setting_of_a_wrong_type() -> None:
    read = ConfigView(GOOD | part("loading", recipes=["cubic"], images=0, batch_size=0), {"loading.recipes"})
    assert list(checks.benchmark_problems(read)) == [
        "loading.images=0 must be at least 20",
        "loading.batch_size=0 must be at least 1",
    ]


@pytest.mark.parametrize("name", TARGETS)
def test_the_defaults_of_a_part_are_right(name: str) -> None:
    assert list(checks.benchmark_problems(ConfigView(GOOD | part(name), set()))) == []


def test_settings_that_train_py_takes_and_no_file_lists_are_taken() -> None:
    change = part("devices", counts=[1, 2], settings=["trainer.sync_batchnorm=true"])
    assert list(checks.benchmark_problems(ConfigView(GOOD | change, set()))) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_reported() -> None:
    (line,) = checks.benchmark_problems(ConfigView(GOOD | {"accelerator": "gpu"}, set()))
    assert line == "accelerator=gpu: torch finds no GPU; use accelerator=cpu, or auto"


def test_a_configuration_has_its_run_folder() -> None:
    config = checks.train_config(["logger=csv", "optimizer.lr=0.5"], "mine")
    assert (config["run_dir"], config["optimizer"]["lr"]) == ("mine", 0.5)
