"""`python src/compare.py` compares trained runs, by name or the newest of a folder, and reports mistakes first."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import compare


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch, twins: list[Path]) -> Callable[..., None]:
    def run(*overrides: str) -> None:
        monkeypatch.chdir(twins[0].parent)
        monkeypatch.setattr(sys, "argv", ["compare.py", *overrides])
        compare.main()

    return run


@pytest.mark.parametrize("which", ["run=[a,b]", "folder=."])
def test_two_runs_of_one_command_are_equal_on_every_image(
    compared: Callable[..., None], which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compared(which, f"hydra.run.dir={tmp_path / 'out'}")
    assert "2 runs: 2 jobs, 2 finished" in capsys.readouterr().out
    with (tmp_path / "out" / "paired.csv").open(newline="") as lines:
        (line,) = csv.DictReader(lines)
    assert (line["difference"], line["right only here"], line["p"]) == ("0.0", "0", "1.0")
    assert (tmp_path / "out" / "disagreements.csv").read_text().count("\n") == 1, "the names of the columns"


@pytest.mark.parametrize(
    ("overrides", "reported"),
    [
        ([], "neither run nor folder is set; set one of them"),
        (["run=[a,b]", "folder=."], "run and folder are both set; set one of them"),
        (["run=[a,b,a]"], "run=['a', 'b', 'a'] names a run twice; name each once"),
        (["run=[a]"], "run=['a'] has 1 runs; name two or more to compare"),
        (["run=[a,nothing]"], "run=nothing is no training's folder: it has no metrics.csv"),
        (["folder=nowhere"], "folder=nowhere has 0 runs; name two or more to compare"),
        (["run=[a,b]", "newest=0"], "newest=0 must be at least 1"),
    ],
)
def test_a_mistake_is_reported_before_anything_is_read(
    compared: Callable[..., None], overrides: list[str], reported: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        compared(*overrides)
    assert reported in capsys.readouterr().err
