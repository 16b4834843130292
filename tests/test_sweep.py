"""`python src/sweep.py`: a sweep in a table, its end, and its dashboard, whose panels name what its runs log."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sweep
from conftest import Program, Tracked
from vitlab.cli import preflight
from vitlab.cli.arguments import with_action
from vitlab.runs import lock, wandb
from vitlab.runs.folder import RESULTS, write_config
from vitlab.storage import atomic
from vitlab.sweeps import ledger
from vitlab.sweeps.ledger import Sweep

Dashboard = Callable[..., Any]
FAILED = "ValueError: " + "a long story\n" * 20
GRID = ["model/patch=p2,p4", "sweep=mine", "trainer.max_epochs=1", "logger.wandb.tags=[ours]"]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a sweep over two keys, of which two jobs are finished, one has failed, and one waits."""
    monkeypatch.chdir(tmp_path)
    folder = ledger.SWEEPS / "mine"
    ends = [("0", "finished", 0.5), ("1", "crashed", None), ("2", "finished", 0.25), ("3", None, None)]
    ledger.write_sweep(folder, command="python a -m", varies=["optimizer.lr", "seed"], objectives={"val/loss": "min"})
    for seed, status, loss in ends:
        job = folder / f"seed_{seed}"
        ledger.add_jobs(folder, {f"id{seed}": {"folder": job.name, "settings": {"optimizer.lr": "0.1", "seed": seed}}})
        if status:
            job.mkdir()
            results = {"status": status, "seconds": 61.7} | ({"val/loss": loss} if loss else {"error": FAILED})
            (job / ledger.JOB).write_text(json.dumps({"attempts": [{}, {"error": "x"}]}))
            atomic.atomic_write(job / RESULTS, json.dumps(results))
    return folder.absolute()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the program, from its command line on."""

    def inside(*arguments: str) -> None:
        quiet = "hydra/hydra_logging=none"
        monkeypatch.setattr(sys, "argv", ["sweep.py", *arguments, quiet])
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


def test_status_counts_the_jobs_that_are_not_planned_yet(
    mine: Path, run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.add_jobs(mine, {}, planned={}, digest="of files", total=6)
    run("status", "sweep=mine")
    head = "mine: 4 jobs, 2 finished, 1 crashed, 1 waiting, 2 more not planned yet"
    assert capsys.readouterr().out.splitlines()[0] == head


def test_status_shows_what_is_damaged_and_what_ended_by_time(
    mine: Path, run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    (mine / "seed_0" / RESULTS).write_bytes(b"\xff\x00")
    (mine / "seed_1" / RESULTS).write_text('{"status": "stopped", "val/loss": "low", "seconds": null}')
    (mine / "seed_2" / ledger.JOB).write_bytes(b"\xff")
    run("status", "sweep=mine")
    head, _, *rows, best = capsys.readouterr().out.splitlines()
    assert head == "mine: 4 jobs, 1 unreadable, 1 stopped, 1 finished, 1 waiting"
    assert "results.json is damaged (" in rows[0]
    assert rows[1].endswith("ended by trainer.max_time")
    assert best == f"best val/loss=0.25: {mine / 'seed_2'}"
    run("report", "sweep=mine")


def test_cancel_marks_the_sweep_and_says_how_to_continue_it(
    mine: Path, run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with lock.run_lock(mine / "seed_1", "job"):
        run("cancel", "sweep=mine")
    assert capsys.readouterr().out == (
        "mine is cancelled: 1 running job will save and end, none starts;\nto continue it, run: python a -m\n"
    )
    assert ledger.cancelled_problem(mine)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["action=status"], "sweep is not set; status takes sweep=NAME"),
        (["status", "sweep=mien"], "sweep=mien is no sweep: neither it nor runs/sweeps/mien has a sweep.json; did you"),
        (["action=stat", "sweep=mine"], "action=stat is not one of 'status', 'report', 'cancel', 'dashboard'"),
        (["cancel", "run=untracked"], "run=untracked is for dashboard; cancel takes sweep=NAME"),
        (["dashboard"], "neither sweep nor run is set; dashboard takes sweep=NAME or run=FOLDER"),
        (["dashboard", "sweep=mine", "run=x"], "sweep and run are both set; dashboard takes sweep=NAME or run=FOLDER"),
        (["dashboard", "sweep=mien"], "sweep=mien is no sweep: neither it nor runs/sweeps/mien has a sweep.json"),
        (["dashboard", "run=runs"], "run=runs is not a run folder: it has no config.yaml"),
        (["dashboard", "run=untracked"], "run=untracked: it isn't tracked by wandb, so there is nothing to show there"),
        (["dashboard", "sweeep=mine"], "sweeep=mine: there is no such setting; did you mean 'sweep'?"),
    ],
)
@pytest.mark.usefixtures("mine")
def test_what_is_no_sweep_is_reported(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(Path("untracked"), {"logger": {"csv": None}, "name": "x"})
    with pytest.raises(SystemExit):
        preflight.preflight(sweep.main, with_action(arguments, sweep.main.function))
    assert f"  - {problem}" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ at wandb, of a real sweep


@pytest.fixture(scope="module")
def swept(program: Program, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a sweep of two jobs, and what it printed."""
    folder = tmp_path_factory.mktemp("swept")
    return folder, program("train", "-m", *small, *GRID, "seed=choice(3)", cwd=folder)


@pytest.fixture(scope="module")
def grid(swept: tuple[Path, str]) -> Sweep:
    return ledger.read_sweep(swept[0] / "runs" / "sweeps" / "mine")


@pytest.fixture(scope="module")
def parts(grid: Sweep, tracked: Tracked) -> list[tuple[Any, list[Any]]]:
    """The wandb run of each job: its summary and its rows."""
    return [part for job in grid.jobs for part in tracked(job.folder)]


@pytest.fixture(scope="module")
def summaries(parts: list[tuple[Any, list[Any]]]) -> list[Any]:
    return [summary for summary, _ in parts]


@pytest.fixture(scope="module")
def logged(parts: list[tuple[Any, list[Any]]]) -> set[str]:
    """The names that the first job has logged."""
    return {name for row in parts[0][1] for name in row}


@pytest.fixture
def show(
    swept: tuple[Path, str], run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Dashboard:
    """Runs the program in this process as a user without a wandb account: its argument -> the specification."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "NETRC", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(swept[0])

    def inside(argument: str) -> Any:
        run("dashboard", argument)
        folder = Path(argument.partition("=")[2])
        file = next(f for f in (folder / "dashboard.json", ledger.SWEEPS / folder / "dashboard.json") if f.is_file())
        return json.loads(file.read_text())

    return inside


def group(run: Path) -> str:
    """The group of an offline run, which is not in wandb's summary of it."""
    (part,) = (run / "wandb").glob("offline-run-*")
    records = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(part)]
    lines = subprocess.run(records, capture_output=True, text=True, check=True).stdout.splitlines()
    return next(str(record["run"]["run_group"]) for record in map(json.loads, lines) if record["type"] == "run")


def panels(specification: Any) -> dict[str, list[Any]]:
    """The panels of each section."""
    sections = specification["spec"]["section"]["panelBankConfig"]["sections"]
    assert all(section["isOpen"] for section in sections)
    return {section["name"]: section["panels"] for section in sections}


# --------------------------------------------------------------------------------------------- what the jobs log


def test_each_job_is_a_run_of_its_own_grouped_by_its_sweep_and_named_by_what_varies(
    grid: Sweep, summaries: list[Any]
) -> None:
    assert len({found["run_id"] for found in summaries}) == 2
    assert [group(job.folder) for job in grid.jobs] == ["mine", "mine"]
    assert [found["name"] for found in summaries] == ["model/patch=p2 seed=3", "model/patch=p4 seed=3"]
    assert [set(found["tags"]) for found in summaries] == [
        {"ours", "model/patch=p2", "seed=3"},
        {"ours", "model/patch=p4", "seed=3"},
    ]
    assert [found["config"]["choices"] for found in summaries] == [
        {"model/patch": "p2", "seed": 3},
        {"model/patch": "p4", "seed": 3},
    ]
    assert [found["config"]["configuration"] for found in summaries] == ["model/patch=p2", "model/patch=p4"]
    assert [found["state"] for found in summaries] == ["finished", "finished"]


def test_the_summary_has_the_best_checkpoints_scores_and_what_it_cost(grid: Sweep, summaries: list[Any]) -> None:
    for job, found in zip(grid.jobs, summaries, strict=True):
        summary = found["summary"]
        assert summary["best/val/acc"] == job.results["val/acc"]
        assert summary["test/acc"] == pytest.approx(job.results["test/acc"])
        assert summary["parameters"] == job.results["parameters"]


def test_the_sweep_logs_its_progress_and_writes_a_report(swept: tuple[Path, str], grid: Sweep) -> None:
    lines = swept[1].splitlines()
    ends = [line for line in lines if re.fullmatch(r"model/patch=p\d seed=3: finished, val/acc 0\.\d+, \d+ s", line)]
    assert len(ends) >= 1, "the last one may have ended with the program"
    assert any(line.startswith("sweep mine: 2 of 2 jobs done, 0 running, 0 failed; best val/acc 0.") for line in lines)
    assert lines[-1] == f"report: {grid.folder / 'report' / 'index.html'}"
    with (grid.folder / "report" / "results.csv").open(newline="") as table:
        assert {row["model/patch"] for row in csv.DictReader(table)} == {"p2", "p4"}
    assert "━" not in swept[1], "a sweep's jobs draw no bars of their own"


# ------------------------------------------------------------------------------------------------------- the dashboards


def test_a_sweeps_dashboard_has_its_panels_and_they_name_what_the_runs_have(
    show: Dashboard, grid: Sweep, summaries: list[Any], logged: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = show("sweep=mine")
    printed = capsys.readouterr().out
    assert "You are not logged in" in printed
    assert f"specification: {grid.folder / 'dashboard.json'}" in printed
    assert (found["project"], found["displayName"]) == ("vitlab", "sweep mine")
    by_section = panels(found)
    assert list(by_section) == ["Settings", "Scores", "Curves", "Pictures", "Runs"]

    (parallel,) = by_section["Settings"]
    assert parallel["viewType"] == "Parallel Coordinates Plot"
    accessors = [column["accessor"] for column in parallel["config"]["columns"]]
    assert accessors == [
        "config:choices.value.model/patch",
        "config:choices.value.seed",
        "summary:best/val/acc",
        "summary:test/acc",
    ]
    for accessor in accessors:
        kind, _, path = accessor.partition(":")
        for summary in summaries:
            holder = summary["summary"] if kind == "summary" else summary["config"]["choices"]
            assert path.removeprefix("choices.value.") in holder

    bars = {
        panel["config"]["groupBy"]: panel["config"] for panel in by_section["Scores"] if "groupBy" in panel["config"]
    }
    assert list(bars) == ["configuration.value", "choices.value.model/patch"]
    assert {bar["groupArea"] for bar in bars.values()} == {"stddev"}
    for curve in by_section["Curves"]:
        assert (curve["config"]["groupBy"], curve["config"]["groupArea"]) == ("configuration.value", "stddev")
        assert {curve["config"]["xAxis"], *curve["config"]["metrics"]} <= logged
    (pictures,) = by_section["Pictures"]
    assert all(key in summaries[0]["summary"] for key in pictures["config"]["mediaKeys"])
    (table,) = by_section["Runs"]
    assert table["viewType"] == "Run Comparer"
    (runset,) = found["spec"]["section"]["runSets"]
    assert '"group"' in json.dumps(runset["filters"])
    assert '"mine"' in json.dumps(runset["filters"])


def test_a_runs_dashboard_shows_that_run(show: Dashboard, grid: Sweep, logged: set[str]) -> None:
    run = grid.jobs[0].folder
    found = show(f"run={run}")
    by_section = panels(found)
    shown = {name for panel in by_section["Training"] for name in panel["config"].get("metrics", [])}
    speed = {"train/images_per_second", "train/mfu", "train/data_wait"}
    assert shown == {"train/loss", "val/loss", "val/acc", "val/acc5", "train/gradient_norm", *speed}
    assert shown <= logged
    (rates,) = [panel["config"] for panel in by_section["Training"] if panel["config"].get("useMetricRegex")]
    assert {name for name in logged if re.search(rates["metricRegex"], name)} == {"lr/decay", "lr/no_decay"}
    assert [panel["viewType"] for panel in by_section["Pictures"]] == ["Media Browser"]
    assert wandb.run_id(run) in json.dumps(found["spec"]["section"]["runSets"][0]["filters"])
