"""Programs are made of counts and kinds of scaling, their steady rate is read, and efficiency is of a device."""

import csv
import json
import math
from pathlib import Path

import pytest

import benchmark
from vitlab.benchmarking import devices
from vitlab.benchmarking.devices import Devices, Program
from vitlab.benchmarking.timing import Case, Clock, Measured
from vitlab.throughput import SPEED, WAIT
from vitlab.tracking import MetricsFile


def measured(count: int, rate: float) -> Measured:
    figures = {"devices": count, "MFU %": 40.0}
    return Measured(name=str(count), seconds=(1 / rate,), calls=1, items=1, peer=True, figures=figures)


def test_weak_scaling_keeps_the_images_of_a_device_and_strong_those_of_a_step() -> None:
    weak, strong = Devices(counts=[4, 1, 2], batch_size=8).table("cpu").items()
    assert weak[0] == "weak, ddp, vit_mini at 32 px, 8 images a device"
    assert strong[0] == "strong, ddp, vit_mini at 32 px, 8 images a step"
    assert [(p.devices, p.batch_size, p.trainer) for p in weak[1]] == [
        (1, 8, "default"),
        (2, 16, "ddp"),
        (4, 32, "ddp"),
    ]
    assert [(p.devices, p.batch_size, p.trainer) for p in strong[1]] == [
        (1, 8, "default"),
        (2, 8, "ddp"),
        (4, 8, "ddp"),
    ]


def test_without_one_device_the_fewest_are_where_both_kinds_begin() -> None:
    table = Devices(counts=[2, 4], strategies=["fsdp"], batch_size=8, model="vit_b16", image_size=224).table("cuda")
    assert list(table) == [
        "weak, fsdp, vit_b16 at 224 px, 8 images a device",
        "strong, fsdp, vit_b16 at 224 px, 16 images a step",
    ]
    assert [[program.batch_size for program in row] for row in table.values()] == [[16, 32], [16, 16]]
    assert len({row[0] for row in table.values()}) == 1


@pytest.mark.parametrize(("there", "counts"), [(1, []), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_all_gpus_are_used_where_there_are_two(there: int, counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    assert Devices().chosen("cuda") == counts
    assert Devices().chosen("cpu") == []


def test_what_is_left_out_is_told(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level("INFO")
    part = Devices()
    assert list(part.cases(Clock(rounds=1, seconds=0.0))) == []
    part.draw([], tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "devices: left out, since processes on a CPU share its cores; devices.counts=[1,2]" in caplog.text


def test_the_rate_is_the_median_of_the_rows_that_lie_after_the_warm_up(tmp_path: Path) -> None:
    file = MetricsFile(folder=str(tmp_path))
    for step, rate in ((5, 1.0), (10, 2.0), (12, 3.0), (15, 40.0), (20, 60.0), (25, 50.0)):
        file.log_metrics({SPEED: rate, WAIT: rate / 100}, step=step)
    file.log_metrics({"val/acc": 0.5}, step=25)
    assert devices.steady(file.file, warmup=8) == {SPEED: 50.0, WAIT: 0.5}
    with pytest.raises(RuntimeError, match="no row with train/images_per_second after 30 steps"):
        devices.steady(file.file, warmup=30)


def test_efficiency_is_the_rate_of_a_device_as_a_share_of_what_it_is_on_the_fewest(tmp_path: Path) -> None:
    found = devices.efficient([measured(1, 100.0), measured(2, 150.0), measured(4, 400.0)])
    assert [m.figures["efficiency %"] for m in found] == pytest.approx([100, 75, 100])
    assert [*found[0].figures] == ["devices", "efficiency %", "MFU %"]
    late = devices.efficient([measured(2, 100.0), measured(4, 150.0)])
    assert [m.figures["efficiency %"] for m in late] == pytest.approx([100, 75])
    case = Case(part="devices", name="weak", unit="images", measured=found)
    Devices().draw([case], tmp_path)
    assert (tmp_path / "devices.png").read_bytes().startswith(b"\x89PNG")


def test_a_program_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "SOURCE", Path("/nowhere"))
    program = Program(devices=1, batch_size=4, trainer="default")
    with pytest.raises(RuntimeError, match="No such file"):
        Devices(counts=[1]).contender(program, [program], "cpu").run()


@pytest.mark.long
def test_real_trainings_on_one_process_and_two_are_measured_in_turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = ["devices.counts=[1,2]", "devices.kinds=[weak]", "devices.batch_size=8", "devices.image_size=8"]
    chosen += ["devices.warmup=5", "devices.steps=10", "devices.rounds=1"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["benchmark.py", "parts=[devices]", "accelerator=cpu", *chosen, "hydra.run.dir=mine"]
    )
    benchmark.main()
    assert json.loads((tmp_path / "mine" / "results.json").read_text())["cases"] == 1
    with (tmp_path / "mine" / "benchmark.csv").open(newline="") as lines:
        rows = [*csv.DictReader(lines)]
    assert {"devices", "efficiency %", "MFU %", "data wait %"} <= {*rows[0]}
    assert {float(row["devices"]) for row in rows} == {1, 2}
    assert all(math.isfinite(float(row["seconds"])) and float(row["seconds"]) > 0 for row in rows)
    assert (tmp_path / "mine" / "devices.png").exists()
