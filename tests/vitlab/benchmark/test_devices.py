"""Programs of counts and kinds of scaling; efficiency is of a device."""

import csv
import json
import math
from pathlib import Path

import pytest

import benchmark
from vitlab.benchmark import devices
from vitlab.benchmark.devices import Devices, Program
from vitlab.diagnostics.timing import Clock


def test_weak_scaling_keeps_the_images_of_a_device_and_strong_those_of_a_step() -> None:
    assert Devices(counts=[4, 1, 2], batch_size=8).table("cpu") == {
        "weak, 8 images a device": [(1, 8, "default"), (2, 16, "ddp"), (4, 32, "ddp")],
        "strong, 8 images a step": [(1, 8, "default"), (2, 8, "ddp"), (4, 8, "ddp")],
    }


def test_without_one_device_the_fewest_are_where_both_kinds_begin() -> None:
    assert Devices(counts=[2, 4], strategy="fsdp", batch_size=8).table("cuda") == {
        "weak, 8 images a device": [(2, 16, "fsdp"), (4, 32, "fsdp")],
        "strong, 16 images a step": [(2, 16, "fsdp"), (4, 16, "fsdp")],
    }


@pytest.mark.parametrize(("there", "counts"), [(1, []), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_all_gpus_are_used_where_there_are_two(there: int, counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    weak, *_ = Devices().table("cuda").values()
    assert [program.devices for program in weak] == counts
    assert not any(Devices().table("cpu").values())


TRAIN = """
import json, sys
from pathlib import Path
settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
rate = {"2": 100, "4": 150}[settings["trainer.devices"]] + int(settings["batch_size"])
Path(settings["hydra.run.dir"], "results.json").write_text(json.dumps({"images_per_second": rate, "mfu": 0.5}))
"""


def test_efficiency_is_the_rate_of_a_device_relative_to_that_on_the_fewest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setattr(devices, "SOURCE", tmp_path)
    two, four = Devices(counts=[2, 4], batch_size=10).cases(Clock(rounds=2, seconds=0.0))
    assert [(case.name, case.axis, case.size) for case in (two, four)] == [
        ("on 2", "devices", 2),
        ("on 4", "devices", 4),
    ]
    assert [m.figures["efficiency %"] for m in two.measured] == pytest.approx([100, 100])
    assert [m.figures["efficiency %"] for m in four.measured] == pytest.approx([50 * 190 / 120, 50 * 170 / 120])
    assert four.measured[1].figures["MFU %"] == 50
    assert {m.figures["ideal exponent"] for m in four.measured} == {1}


def test_a_program_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "SOURCE", Path("/nowhere"))
    with pytest.raises(RuntimeError, match="No such file"):
        Devices(counts=[1]).contender(Program(devices=1, batch_size=4, trainer="default"), "cpu", 1).run()


@pytest.mark.long
def test_real_trainings_on_one_process_and_two_are_measured_in_turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = ["devices.counts=[1,2]", "devices.batch_size=8", "devices.steps=20", "devices.settings=['image_size=8']"]
    monkeypatch.chdir(tmp_path)
    line = ["parts=[devices]", "accelerator=cpu", "rounds=1", *chosen, "hydra.run.dir=mine"]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *line])
    benchmark.main()
    assert json.loads((tmp_path / "mine" / "results.json").read_text())["cases"] == 2
    with (tmp_path / "mine" / "benchmark.csv").open(newline="") as lines:
        rows = [*csv.DictReader(lines)]
    assert {"efficiency %", "MFU %", "data wait %"} <= {*rows[0]}
    assert [row["case"] for row in rows] == ["on 1", "on 1", "on 2", "on 2"]
    assert all(math.isfinite(float(row["seconds"])) and float(row["seconds"]) > 0 for row in rows)
    assert (tmp_path / "mine" / "devices.png").exists()
