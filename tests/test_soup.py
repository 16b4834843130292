"""`python src/soup.py` on runs that are fine-tuned from one run: evaluate.py finds its scores again."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
import soup

Call = Callable[..., Any]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Runs a program of this process in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(module: Any, *overrides: str) -> None:
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *overrides])
        module.main()

    return run


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.long
def test_a_soup_is_a_run_that_scores_what_evaluate_finds(twins: list[Path], tmp_path: Path, call: Call) -> None:
    for name, step in (("one", 0.01), ("two", 0.02), ("bad", 100.0)):
        shutil.copytree(twins[0], tmp_path / name)
        file = tmp_path / name / "checkpoints" / "best.ckpt"
        content = torch.load(file, weights_only=True)
        generator = torch.Generator().manual_seed(int(100 * step))
        for tensor in content["state_dict"].values():
            if tensor.is_floating_point() and tensor.ndim > 1:
                tensor += step * tensor.std() * torch.randn(tensor.shape, generator=generator)
        torch.save(content, file)
    call(soup, "runs=[bad,one,two]", "out=soup", "trainer.accelerator=cpu")
    made = results(tmp_path / "soup" / "log")
    assert set(made["runs"]) == {"one", "two"}
    assert made["method"] == "greedy"
    call(evaluate, "run=soup", "split=test", "trainer.accelerator=cpu")
    found = results(tmp_path / "soup" / "evaluation" / "best-test")
    assert {k: found[k] for k in ("test/acc", "test/loss")} == {k: made[k] for k in ("test/acc", "test/loss")}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["runs=a"], "runs=a: a soup needs at least two runs with checkpoints/best.ckpt, and this has 0"),
        (["runs=[a,c]"], "runs: run=c is not a run folder: it has no config.yaml; leave it out"),
        (["runs=[a,other]"], "runs: other and a differ in model.dim; a soup is of one network and split"),
        (["runs=[a,b]", "out=a"], "out=a has a run already; name another folder"),
        (["runs=[a,b]", "method=best"], "method=best is not one of 'greedy', 'uniform'"),
    ],
)
def test_runs_that_have_no_mean_are_refused(
    arguments: list[str],
    problem: str,
    twins: list[Path],
    tmp_path: Path,
    call: Call,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for run in twins:
        shutil.copytree(run, tmp_path / run.name)
    shutil.copytree(twins[0], tmp_path / "other")
    config = tmp_path / "other" / "config.yaml"
    config.write_text(config.read_text().replace("dim: 16", "dim: 32"))
    with pytest.raises(SystemExit):
        call(soup, *arguments)
    assert problem in capsys.readouterr().err
