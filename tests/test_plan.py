"""`python src/plan.py` plans a training, alone or several in a table, without its data and devices."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import plan
from vitlab.config.schema import ConfigView

Plan = Callable[..., Path]
SMALL = ["model.dim=16", "model.depth=1", "model.heads=2", "measure=false"]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plan:
    """Runs the program in this process, in an empty folder: overrides -> that folder."""

    def run(*overrides: str) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["plan.py", *overrides])
        plan.main()
        return tmp_path

    return run


def test_a_plan_needs_neither_data_nor_devices(planned: Plan) -> None:
    sizes = ["images=1281167", "classes=1000", "trainer.devices=8", "device=h100", "memory_gb=80"]
    folder = planned("experiment=plain_s16", "model.depth=1", "hydra.run.dir=out", *sizes) / "out"
    found: Any = json.loads((folder / "plan.json").read_text())
    assert found["parameters"] > 10**6
    assert found["steps"] == 111_477
    assert found["images_seen"] == 111_477 * 1024
    assert {"weights", "gradients", "optimizer", "activations"} <= found["memory"].keys()
    assert found["hours"] > 0
    warmup = max(rate for step, rate in found["learning_rate"] if step < 9_000)
    assert warmup < 1e-3 == pytest.approx(max(rate for _, rate in found["learning_rate"]), rel=1e-3)
    assert {group["weight_decay"] for group in found["groups"]} == {0.0, 0.1}
    assert found["advice"][0].startswith("fits")
    assert found["data"].startswith("not here: data_dir=")
    assert (folder / "plan.png").stat().st_size > 10_000
    assert "images seen " in (folder / "plan.log").read_text()
    results = json.loads((folder / "results.json").read_text())
    assert (results["status"], results["steps"]) == ("finished", found["steps"])


def test_several_plans_are_a_table(planned: Plan) -> None:
    folder = planned("-m", *SMALL, "optimizer=adamw,sgd", "trainer.devices=1,2", "hydra.sweep.dir=out") / "out"
    rows = (folder / "plans.md").read_text().splitlines()
    assert len(rows) == 2 + 4
    assert rows[3].startswith("| optimizer=adamw trainer.devices=2 |")
    assert json.loads((folder / "3" / "plan.json").read_text())["devices"] == 2


def test_sizes_that_nothing_knows_are_asked_for(planned: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        planned(*SMALL, "data=image_folder", "image_size=32")
    assert end.value.code == 1
    assert "set images and classes (of ImageNet-1k images=1281167 classes=1000)" in capsys.readouterr().err


def test_mistakes_are_reported_before_the_start(
    planned: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        planned("device=abacus", "mfu=2", "model.dmi=4", "resume=auto")
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert "device=abacus: its FLOPs per second in trainer.precision=32-true are unknown; known are gb200, " in errors
    for line in ("mfu=2 must be", "model.dmi=4: there is no such setting", "resume=auto: there is no such setting"):
        assert line in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["here", "h100", "NVIDIA A100-SXM4-80GB", "rtx 4090"])
def test_a_known_device_can_be_planned_for(device: str) -> None:
    assert list(plan.plan_problems(ConfigView({"device": device, "trainer": {"precision": "bf16-mixed"}}, set()))) == []


@pytest.mark.parametrize(("device", "precision"), [("abacus", "32-true"), ("v100s", "bf16-mixed"), ("h100", "64-true")])
def test_a_device_of_unknown_speed_is_refused(device: str, precision: str) -> None:
    (line,) = plan.plan_problems(ConfigView({"device": device, "trainer": {"precision": precision}}, set()))
    assert line.startswith(f"device={device}: its FLOPs per second in trainer.precision={precision} are unknown; known")
    assert ", h100|h200|gh200, a100, a40, " in line
