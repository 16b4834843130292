"""A grid's jobs are planned once, in order, each when its turn comes."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitlab.sweeps import ledger
from vitlab.sweeps.planner import Planner, files_digest


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Planner]:
    """A planner of jobs that differ in their seed; composing one writes a line to `composed`."""
    monkeypatch.chdir(tmp_path)
    ledger.write_sweep(tmp_path / "s", command="c", varies=["seed"], objectives={"val/loss": "min"})

    def make(seeds: Any, *, broken: int | None = None) -> Planner:
        def describe(overrides: list[str]) -> tuple[str, Any]:
            seed = overrides[0].partition("=")[2]
            if broken == int(seed):
                raise ValueError(f"seed {seed} can't be composed")
            with Path("composed").open("a") as file:
                file.write(f"{seed}\n")
            return ledger.ledger_entry(Path("s"), {"seed": int(seed) % 100}, overrides)

        return Planner(Path("s"), [[f"seed={seed}"] for seed in seeds], describe, [tmp_path / "conf"])

    return make


def composed() -> list[int]:
    return [*map(int, Path("composed").read_text().split())] if Path("composed").exists() else []


def seeds(planner: Planner) -> list[int]:
    return [int(overrides[0].partition("=")[2]) for _, overrides in planner.jobs()]


def test_what_is_planned_is_not_composed_again_until_a_file_changes(plan: Callable[..., Planner]) -> None:
    assert seeds(plan(range(5))) == [0, 1, 2, 3, 4]
    assert composed() == [0, 1, 2, 3, 4]
    assert [job.choices["seed"] for job in ledger.read_sweep(Path("s")).jobs] == list("01234")
    assert seeds(plan([3, 7, 1])) == [3, 7, 1]
    assert composed()[5:] == [7]
    assert seeds(plan(range(5))) == [0, 1, 2, 3, 4]
    Path("conf").mkdir()
    Path("conf", "train.yaml").write_text("seed: 0")
    assert seeds(plan([0])) == [0]
    assert composed()[6:] == [0]


def test_a_job_is_planned_when_its_turn_comes(plan: Callable[..., Planner]) -> None:
    planner = plan(range(1000))
    folder, overrides = next(planner.jobs())
    assert overrides == ["seed=0"]
    assert folder.name.startswith("seed_0-")
    assert composed() == [0]
    assert json.loads(Path("s/sweep.json").read_text())["total"] == 1000


def test_the_total_is_that_of_the_last_command(plan: Callable[..., Planner]) -> None:
    next(plan(range(1000)).jobs())
    assert seeds(plan([0])) == [0]
    assert json.loads(Path("s/sweep.json").read_text())["total"] == 1


def test_the_same_job_comes_once(plan: Callable[..., Planner], caplog: pytest.LogCaptureFixture) -> None:
    assert seeds(plan([1, 1])) == [1]
    assert caplog.messages == ["['seed=1'] is the same job as ['seed=1']"]


def test_a_job_that_can_not_be_composed_ends_the_plan_after_those_before_it(plan: Callable[..., Planner]) -> None:
    planner = plan([0, 1, 2], broken=1)
    assert seeds(planner) == [0]
    assert str(planner.error) == "seed 1 can't be composed"


def test_a_damaged_ledger_is_planned_again(plan: Callable[..., Planner], caplog: pytest.LogCaptureFixture) -> None:
    assert seeds(plan([0, 1])) == [0, 1]
    Path("s", ledger.SWEEP).write_text("{")
    with caplog.at_level(logging.ERROR):
        assert seeds(plan([0, 1])) == [0, 1]
    assert composed() == [0, 1, 0, 1]


def test_the_digest_is_of_yaml_files_of_folders_and_python_files_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "conf"
    folder.mkdir()
    known = {files_digest([folder, tmp_path])}
    for file in ("conf/data.yaml", "mine.py", "package/part.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("1")
        known.add(files_digest([folder, tmp_path]))
    assert len(known) == 4
    (tmp_path / "notes.txt").write_text("1")
    assert files_digest([folder, tmp_path]) in known


def test_jobs_that_will_start_are_in_the_ledger_before_and_others_are_entered_together(
    plan: Callable[..., Planner], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = []
    for folder, _ in plan(range(20)).jobs():
        folder.mkdir()
        listed.append(len(ledger.read_head(Path("s"))["jobs"]))
        (folder / "results.json").write_text("{}")
    assert listed == [*range(1, 21)]
    Path("s/sweep.json").unlink()
    ledger.write_sweep(Path("s"), command="c", varies=["seed"], objectives={"val/loss": "min"})
    writes, add_jobs = [], ledger.add_jobs

    def add(folder: Path, jobs: Any, **others: Any) -> None:
        writes.append(len(jobs))
        add_jobs(folder, jobs, **others)

    monkeypatch.setattr(ledger, "add_jobs", add)
    planner = plan(range(20))
    planner.written += 3600  # however slow this machine is
    assert seeds(planner) == [*range(20)]
    assert writes == [0, 20]
    assert len(ledger.read_head(Path("s"))["jobs"]) == 20
