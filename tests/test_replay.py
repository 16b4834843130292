"""`python src/replay.py` on the captured step of a diverging run of two processes."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import replay
from conftest import Program

Replay = Callable[..., Any]
DIVERGING = ["optimizer.lr=1e8", "trainer.gradient_clip_val=0", "schedule.warmup_steps=0", "logger=csv"]


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def diverged(program: Program, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run of two processes that a rate of 1e8 ended, and what it printed."""
    folder = tmp_path_factory.mktemp("diverged")
    settings = [*small, *DIVERGING, "trainer.devices=2", "model.dropout=0.1", "hydra.run.dir=run"]
    return folder / "run", program("train", *settings, cwd=folder, status=1)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Replay]:
    """Runs the program in this process: capture, overrides -> its results."""
    threads = torch.get_num_threads()

    def run(capture: Path, *overrides: str) -> Any:
        monkeypatch.chdir(capture.parent)
        monkeypatch.setattr(sys, "argv", ["replay.py", f"capture={capture.name}", "accelerator=cpu", *overrides])
        replay.main()
        rank = next((o.partition("=")[2] for o in overrides if o.startswith("rank=")), "0")
        return results(capture / "replay" / f"rank{rank}")

    yield run
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def the_capture(run: Path) -> Path:
    (capture,) = (run / "captures").iterdir()
    return capture


@pytest.mark.long
def test_a_diverging_run_of_two_processes_ends_with_one_reason_and_a_part_of_each(diverged: tuple[Path, str]) -> None:
    run, printed = diverged
    found, capture = results(run), the_capture(run)
    assert found["status"] == "crashed"
    assert found["error"].startswith(f"NonFiniteError: step {int(capture.name[5:])} (epoch 1): loss ")
    assert f"python src/replay.py capture={capture}" in found["error"]
    assert found["error"] in printed
    assert {p.name for p in capture.iterdir()} == {"config.yaml", "info.json", "weights.pt", "rank0", "rank1"}
    assert (capture / "config.yaml").read_text() == (run / "config.yaml").read_text()
    info = json.loads((capture / "info.json").read_text())
    assert info["ranks"] == len(info["losses"]) == 2


def test_each_part_is_replayed_without_the_data_or_the_run(
    diverged: tuple[Path, str], replayed: Replay, tmp_path: Path
) -> None:
    capture = tmp_path / "kept"
    shutil.copytree(the_capture(diverged[0]), capture)
    for rank in range(2):
        found = replayed(capture, f"rank={rank}")
        assert found["status"] == "finished"
        assert found["reproduced"]
        assert (found["what"], type(found["module"])) == ("an output", str)
        assert found["outputs"][found["module"]]


@pytest.mark.parametrize(
    ("name", "overrides", "problem"),
    [
        ("empty", [], "capture=empty is not a captured step: it has no info.json"),
        ("run", [], "capture=run is not a captured step: it has no info.json; that run has run/captures/step-0000"),
        ("kept", ["rank=2"], "rank=2: kept has no part of this rank; it has those of 0, 1"),
        ("kept", ["accelerator=gpuu"], "accelerator=gpuu is not one of 'auto', 'cpu', 'gpu', 'mps'"),
    ],
)
def test_a_folder_that_is_not_a_capture_is_refused(
    name: str,
    overrides: list[str],
    problem: str,
    diverged: tuple[Path, str],
    replayed: Replay,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").symlink_to(diverged[0])
    shutil.copytree(the_capture(diverged[0]), tmp_path / "kept")
    with pytest.raises(SystemExit) as end:
        replayed(tmp_path / name, *overrides)
    assert end.value.code == 2
    assert problem in capsys.readouterr().err


def test_a_step_with_finite_values_ends_with_status_1(
    diverged: tuple[Path, str], replayed: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture = tmp_path / "kept"
    shutil.copytree(the_capture(diverged[0]), capture)
    weights = torch.load(capture / "weights.pt", weights_only=True)
    torch.save({k: v.clamp(-0.1, 0.1) for k, v in weights.items()}, capture / "weights.pt")
    with pytest.raises(SystemExit) as end:
        replayed(capture)
    assert end.value.code == 1
    found = results(capture / "replay" / "rank0")
    assert found["status"] == "crashed"
    assert "are finite when replayed on cpu" in found["error"]
