"""A sweep's table: means and deviations over seeds of what finished, best first, nothing lost on the way to a file."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

from vitlab.runs.folder import read_metrics
from vitlab.sweeps.ledger import Job, Status, Sweep
from vitlab.sweeps.report import table

MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """A job by its choices and results; `metrics` are the rows of its `metrics.csv`."""

    def make(
        choices: dict[str, str],
        status: Status = "finished",
        *,
        metrics: list[dict[str, Any]] | None = None,
        **results: Any,
    ) -> Job:
        name = "-".join(choices.values())
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if metrics is not None:
            with (folder / "metrics.csv").open("w", newline="") as lines:
                writer = csv.DictWriter(lines, list(dict.fromkeys(k for row in metrics for k in row)))
                writer.writeheader()
                writer.writerows(metrics)
        found = {key.replace("__", "/"): value for key, value in results.items()}
        return Job(id=name, folder=folder, choices=choices, status=status, attempts=1, results=found)

    return make


def make_sweep(jobs: list[Job], **objectives: Any) -> Sweep:
    found = {key.replace("__", "/"): value for key, value in objectives.items()} or {"val/loss": "min"}
    return Sweep(folder=Path("s"), name="s", command="python src/train.py -m", objectives=found, jobs=jobs)


def test_jobs_that_differ_in_their_seed_alone_are_one_configuration(make_job: MakeJob) -> None:
    losses = {("1", "0"): 0.5, ("2", "0"): 0.1, ("1", "1"): 0.9, ("2", "1"): 0.3, ("2", "2"): 0.2}
    jobs = [make_job({"depth": d, "seed": s}, val__loss=loss) for (d, s), loss in losses.items()]
    one, two = table.configurations(make_sweep(jobs))
    assert (one.choices, one.label) == ({"depth": "2"}, "depth=2")
    assert one.scores["val/loss"].mean == pytest.approx(0.2)
    assert one.scores["val/loss"].deviation == pytest.approx(stdev([0.1, 0.3, 0.2]))
    assert (len(one.finished_jobs), len(two.finished_jobs)) == (3, 2)
    assert two.scores["val/loss"].mean == pytest.approx(0.7)


@pytest.mark.parametrize(("direction", "first"), [("min", "a"), ("max", "b")])
def test_the_best_comes_first_and_what_has_no_score_last(make_job: MakeJob, direction: str, first: str) -> None:
    jobs = [
        make_job({"model": "none"}, "crashed", error="x"),
        make_job({"model": "a"}, val__acc=0.1),
        make_job({"model": "b"}, val__acc=0.9),
    ]
    order = [row.choices["model"] for row in table.configurations(make_sweep(jobs, val__acc=direction))]
    assert order == [first, "b" if first == "a" else "a", "none"]


def test_only_finished_jobs_count(make_job: MakeJob) -> None:
    jobs = [
        make_job({"lr": "1", "seed": "0"}, val__loss=1.0),
        make_job({"lr": "1", "seed": "1"}, "pruned", val__loss=9.0),
        make_job({"lr": "1", "seed": "2"}, "crashed", val__loss=9.0),
        make_job({"lr": "2", "seed": "0"}, "running"),
    ]
    one, two = table.configurations(make_sweep(jobs))
    assert one.scores["val/loss"] == table.MeanStd(1.0, None)
    assert (len(one.jobs), len(one.finished_jobs), two.scores) == (3, 1, {})


def test_a_sweep_of_seeds_alone_is_one_configuration_without_a_label(make_job: MakeJob) -> None:
    jobs = [make_job({"seed": str(s)}, val__loss=s) for s in range(3)]
    (row,) = table.configurations(make_sweep(jobs))
    assert (row.label, row.choices, len(row.jobs)) == ("", {}, 3)
    best = table.best_job(make_sweep(jobs))
    assert best is not None
    assert best.choices == {"seed": "0"}


def test_what_is_no_number_is_no_score(make_job: MakeJob) -> None:
    job = make_job(
        {"a": "1"}, val__acc=0.5, val__loss=math.nan, test__correct=9, commit="x", samples={}, seconds=3, steps=True
    )
    assert table.finite_numbers(job) == {"val/acc": 0.5, "seconds": 3}


def test_a_setting_that_some_jobs_lack_is_no_error(make_job: MakeJob) -> None:
    jobs = [make_job({"opt": "sgd", "momentum": "0.9"}, val__loss=1.0), make_job({"opt": "adam"}, val__loss=0.5)]
    one, two = table.configurations(make_sweep(jobs))
    assert (one.label, two.label) == ("opt=adam", "opt=sgd momentum=0.9")
    assert table.choice_names(make_sweep(jobs)) == ["opt", "momentum"]


def test_a_curve_is_the_mean_where_all_jobs_have_logged(make_job: MakeJob) -> None:
    rows = [[{"images": 10 * i, "val/loss": i + s, "other": ""} for i in range(1, 4 + s)] for s in (0, 2)]
    files = [make_job({"seed": str(s)}, metrics=r).folder / "metrics.csv" for s, r in enumerate(rows)]
    read = [list(read_metrics(file)) for file in files]
    curve = table.mean_curve(read, "val/loss")
    assert {x: score.mean for x, score in curve.items()} == {10: 2, 20: 3, 30: 4}, "where both have logged"
    assert [score.deviation for score in curve.values()] == pytest.approx([stdev([0, 2])] * 3)
    alone = table.mean_curve(read[:1], "val/loss")
    assert [score.deviation for score in alone.values()] == [None] * 3
    assert table.mean_curve(read, "other") == {}
    assert table.mean_curve([], "val/loss") == {}


def test_the_files_hold_every_configuration_and_every_job(make_job: MakeJob, tmp_path: Path) -> None:
    name = 'a,"b"\n<c>'
    jobs = [
        make_job({"lr": "0.1", "seed": "0"}, val__loss=0.1, seconds=2.0),
        make_job({"lr": "0.1", "seed": "1"}, val__loss=0.2, seconds=4.0),
        make_job({"lr": name.replace("\n", " "), "seed": "0"}, "crashed", error=f"ValueError: {name}"),
    ]
    sweep = make_sweep(jobs)
    table.write_results(sweep, tmp_path / "results.csv")
    table.write_jobs(sweep, tmp_path / "jobs.csv")
    with (tmp_path / "results.csv").open(newline="") as lines:
        one, two = csv.DictReader(lines)
    assert (one["rank"], one["lr"], one["jobs"], one["n"]) == ("1", "0.1", "2", "2")
    assert float(one["val/loss/mean"]) == pytest.approx(0.15)
    assert float(one["val/loss/std"]) == stdev([0.1, 0.2])
    assert float(one["seconds/mean"]) == 3.0
    assert (two["n"], two["val/loss/mean"]) == ("0", "")
    with (tmp_path / "jobs.csv").open(newline="") as lines:
        found = list(csv.DictReader(lines))
    assert [row["status"] for row in found] == ["finished", "finished", "crashed"]
    assert found[2]["error"] == r'ValueError: a,"b"\n<c>'
    assert [row["seed"] for row in found] == ["0", "1", "0"]
