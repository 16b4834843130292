"""`python src/sweep.py`: what became of a sweep, in a table, and its end."""

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sweep
from vitlab import command, ledger, runs

FAILED = "ValueError: " + "a long story\n" * 20


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a sweep over two keys, of which two jobs are finished, one has failed, and one waits."""
    monkeypatch.chdir(tmp_path)
    folder = ledger.SWEEPS / "mine"
    ends = [("0", "finished", 0.5), ("1", "crashed", None), ("2", "finished", 0.25), ("3", None, None)]
    ledger.begin(folder, command="python a -m", varies=["optimizer.lr", "seed"], objectives={"val/loss": "min"})
    for seed, status, loss in ends:
        job = folder / f"seed_{seed}"
        ledger.enter(folder, {f"id{seed}": {"folder": job.name, "settings": {"optimizer.lr": "0.1", "seed": seed}}})
        if status:
            job.mkdir()
            results = {"status": status, "seconds": 61.7} | ({"val/loss": loss} if loss else {"error": FAILED})
            (job / ledger.JOB).write_text(json.dumps({"attempts": [{}, {"error": "x"}]}))
            runs.replace(job / runs.RESULTS, json.dumps(results))
    return folder.absolute()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the program, from its command line on."""

    def inside(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["sweep.py", *sweep.spelt_out(list(arguments)), "hydra/hydra_logging=none"])
        sweep.main()

    return inside


@pytest.mark.parametrize("name", ["mine", "runs/sweeps/mine"])
def test_status_shows_every_job_and_the_best(
    mine: Path, run: Callable[..., None], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    there = sorted(Path().rglob("*"))
    run("status", f"sweep={name}")
    head, *rows, best = capsys.readouterr().out.splitlines()
    assert head == "mine: 4 jobs, 2 finished, 1 crashed, 1 waiting"
    assert [row.split()[:6] for row in rows] == [
        ["status", "optimizer.lr", "seed", "val/loss", "starts", "seconds"],
        ["finished", "0.1", "0", "0.5", "2", "62"],
        ["crashed", "0.1", "1", "2", "62", "ValueError:"],
        ["finished", "0.1", "2", "0.25", "2", "62"],
        ["waiting", "0.1", "3", "0"],
    ]
    assert rows[2].endswith("...")
    assert len({row.rstrip().find("0.1") for row in rows[1:]}) == 1, "in columns"
    assert best == f"best val/loss=0.25: {mine / 'seed_2'}"
    assert sorted(Path().rglob("*")) == there, "it only looks"


def test_cancel_marks_the_sweep_and_says_how_it_goes_on(
    mine: Path, run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with runs.held(mine / "seed_1", "job"):
        run("cancel", "sweep=mine")
    assert capsys.readouterr().out == (
        "mine is cancelled: 1 running job will save and end, none starts;\n"
        f"remove {mine / 'cancelled'} to go on with it, by: python a -m\n"
    )
    assert ledger.cancelled_problem(mine)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["action=status"], "sweep is not set, and has no default: add sweep=VALUE"),
        (["status", "sweep=mien"], "sweep=mien is no sweep: neither it nor runs/sweeps/mien has a sweep.json; did you"),
        (["action=stat", "sweep=mine"], "action=stat is not one of 'status', 'report', 'cancel'"),
    ],
)
@pytest.mark.usefixtures("mine")
def test_what_is_no_sweep_is_told(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.preflight("sweep", inspect.unwrap(sweep.main), sweep.spelt_out(arguments))
    assert f"  - {problem}" in capsys.readouterr().err
