"""A search with real trainings in this process: trials that finish, are pruned, fail, are resumed and shared."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from filelock import FileLock
from omegaconf import DictConfig
from optuna.trial import TrialState

import train
from vitlab.cli import command
from vitlab.config.schema import Node
from vitlab.distributed import launch
from vitlab.jobs.compose import CONF
from vitlab.jobs.run import run_here
from vitlab.runs.folder import read_config, read_results
from vitlab.sweeps import ledger
from vitlab.sweeps.search.optimize import LOCKS
from vitlab.sweeps.search.study import open_study

Search = Callable[..., list[Path]]
QUICK = [
    "trainer.max_epochs=2",
    "data.max_train_samples=640",
    "logger=csv",
    "optimizer.lr=tag(log,interval(1e-3,3e-2))",
]
PRUNED = [
    "sweep=pruned",
    "data.max_train_samples=1292",
    "hydra.sweeper.params={schedule:'choice(constant,reciprocal_sqrt)'}",
]
PRUNED += ["hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.pruner.n_warmup_steps=0"]


@pytest.fixture(scope="module")
def _loud() -> Iterator[None]:
    """Restore the logging that Hydra sets up for each job."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level


@pytest.fixture(scope="module")
def searching(_loud: None, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    """Arguments -> the folders of the jobs that the search started, in order; each runs in this process, for speed, and
    the arguments, which are right, are not checked.

    `status` is the exit status that the search must have.
    """
    started: list[Path] = []
    patch = pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("search"))

    def start(name: str, function: Callable[..., Node], entry: Path, config: Node, *, sweep: bool) -> None:
        assert sweep
        started.append(Path(config["run_dir"]))
        try:
            run_here(name, function, started[-1], config)
        except SystemExit as end:  # the end of a process of its own
            raise launch.JobFailed(f"the process ended with status {end.code}") from end

    def job(cfg: DictConfig) -> float | None:
        return command.run_job(train.main, cfg)

    def run(*arguments: str, status: int = 0) -> list[Path]:
        started.clear()
        try:
            patch.setattr(sys, "argv", ["src/train.py", "-m", "hydra/sweeper=optuna", *small, *QUICK, *arguments])
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(job)()
            ended = 0
        except SystemExit as end:
            ended = int(end.code or 0)
        assert ended == status
        return list(started)

    patch.setattr(command, "start_job", start)
    yield run
    patch.undo()


@pytest.fixture(scope="module")
def pruned(searching: Search) -> list[Path]:
    """The jobs of a search whose first trial is kept, and whose other ones are ended wherever they are behind."""
    return searching(*PRUNED, "hydra.sweeper.n_trials=3")


def trials(name: str) -> list[Any]:
    """The trials of a search in its folder."""
    with open_study(f"sqlite:///runs/sweeps/{name}/study.db", name) as study:
        return study.get_trials()


def test_a_search_ends_with_n_trials_each_a_job_of_the_ledger(pruned: list[Path]) -> None:
    sweep = ledger.read_sweep(Path("runs/sweeps/pruned"))
    assert sweep.objectives == {"val/acc": "max"}
    assert [job.folder.name for job in sweep.jobs] == [folder.name for folder in pruned]
    found = trials("pruned")
    assert len(found) == len(pruned) == 3
    for trial, job in zip(found, sweep.jobs, strict=True):
        assert trial.user_attrs["folder"] == job.folder.name
        assert list(job.choices) == ["schedule", "optimizer.lr"]
        assert job.choices["schedule"] == trial.params["schedule"]
        assert float(job.choices["optimizer.lr"]) == pytest.approx(trial.params["optimizer.lr"], rel=1e-3)
        assert read_config(job.folder)["optimizer"]["lr"] == float(job.choices["optimizer.lr"])
        assert job.status == {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}[trial.state]
        assert job.attempts == 1


def test_a_pruned_trial_is_saved_and_not_tested(pruned: list[Path]) -> None:
    found = dict(zip(pruned, trials("pruned"), strict=True))
    ended = [folder for folder, trial in found.items() if trial.state == TrialState.PRUNED]
    assert ended, "none was pruned: another seed of the sampler is needed"
    for folder, trial in found.items():
        results = read_results(folder)
        reported = list(trial.intermediate_values.values())
        assert list(trial.intermediate_values) == list(range(1, results["epochs"] + 1))
        assert results["val/acc"] == pytest.approx(max(reported)), "its best checkpoint's"
        assert ("test/acc" in results) == (folder not in ended)
        assert (results["epochs"] < 2 or trial.value == reported[-1]) or folder not in ended
        assert {f.name for f in (folder / "checkpoints").iterdir()} >= {"best.ckpt", "last.ckpt"}
        assert (folder / "figures" / "curves.png").is_file()
    assert any("is pruned: val/acc" in (folder / "train.log").read_text() for folder in ended)


def test_the_best_trial_is_written_with_the_command_that_trains_it_again(pruned: list[Path]) -> None:
    results = yaml.safe_load(Path("runs/sweeps/pruned/optimization_results.yaml").read_text())
    complete = [t for t in trials("pruned") if t.state == TrialState.COMPLETE]
    best = max(complete, key=lambda trial: trial.value)
    assert results["name"] == "optuna"
    assert results["trials"] == {"complete": len(complete), "pruned": 3 - len(complete)}
    (solution,) = results["solutions"]
    assert solution["trial"] == best.number
    assert solution["values"] == {"val/acc": best.value} == {"val/acc": read_results(pruned[best.number])["val/acc"]}
    config = read_config(pruned[best.number])
    assert solution["params"] == {"optimizer.lr": config["optimizer"]["lr"], "schedule": best.params["schedule"]}
    assert solution["command"].startswith("python src/train.py model.dim=16")
    assert f"optimizer.lr={config['optimizer']['lr']}" in solution["command"].split()
    assert "sweep=" not in solution["command"]


def test_the_same_command_trains_nothing_new_and_a_higher_n_trials_adds_trials(
    searching: Search, pruned: list[Path]
) -> None:
    before = trials("pruned")
    assert searching(*PRUNED, "hydra.sweeper.n_trials=3") == []
    assert trials("pruned") == before
    (new,) = searching(*PRUNED, "hydra.sweeper.n_trials=4")
    assert new not in pruned, "no suggestion is repeated"
    assert trials("pruned")[:3] == before


def test_a_study_of_other_settings_is_refused_with_what_differs(
    searching: Search, pruned: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = [*PRUNED[:2], "trainer.max_epochs=3", "hydra.sweeper.params={schedule:'choice(constant,warmup_linear)'}"]
    assert searching(*other, status=2) == []
    output = capsys.readouterr().out
    assert "study pruned has other settings; name another search with sweep=NAME" in output
    assert "trainer.max_epochs: 2 -> 3 (changes the training)" in output
    assert "choice of schedule: ['constant', 'reciprocal_sqrt'] -> ['constant', 'warmup_linear']" in output


def test_a_failed_trial_is_retried_as_often_as_asked_and_the_others_continue(
    searching: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep=failing", "max_failures_per_job=1", "trainer.gradient_clip_val=0", "trainer.max_epochs=1"]
    arguments += ["hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=3", "optimizer.lr=1e30,1e-2"]
    folders = searching(*arguments, status=1)
    ended = [(t.params["optimizer.lr"], t.state.name) for t in trials("failing")]
    assert set(ended) == {("1e+30", "FAIL"), ("0.01", "COMPLETE")}, "else another seed of the sampler is needed"
    output = capsys.readouterr().out
    failures = ended.count(("1e+30", "FAIL"))
    assert f"failed for good: {failures} of 3 trials" in output
    assert "failed, and will be retried: NonFiniteError" in output
    failed = next(folder for folder in folders if read_results(folder)["status"] == "crashed")
    assert len(ledger.read_attempts(failed)) == 2
    assert searching(*arguments, status=1) == [], "failed trials are not retried by the same command"


def test_several_objectives_are_scored_by_a_batch_of_jobs(searching: Search) -> None:
    arguments = ["hydra/sweeper/pruner=none", "hydra.sweeper.objectives={val/acc:max,parameters:min}"]
    arguments += ["hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", "trainer.max_epochs=1"]
    folders = searching("sweep=front", "hydra/sweeper=random", *arguments)
    results = [read_results(folder) for folder in folders]
    assert [t.values for t in trials("front")] == [[r["val/acc"], r["parameters"]] for r in results]
    assert ledger.read_sweep(Path("runs/sweeps/front")).objectives == {"val/acc": "max", "parameters": "min"}
    assert not any("pruning" in read_config(folder)["callbacks"] for folder in folders)


def test_a_trial_whose_configuration_cant_be_composed_fails_alone(
    searching: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep=uncomposed", "hydra/sweeper=random", "hydra.sweeper.n_trials=2", "model=vit_mini,no_model"]
    assert searching(*arguments, "trainer.max_epochs=1", status=1) != []
    assert sorted(t.state.name for t in trials("uncomposed")) == ["COMPLETE", "FAIL"]
    assert "no_model" in capsys.readouterr().out


def test_a_trial_that_another_process_trains_is_left_alone_and_then_resumed(searching: Search) -> None:
    arguments = ["sweep=shared", "hydra.sweeper.n_trials=2", "trainer.max_epochs=1"]
    folder = Path("runs/sweeps/shared").resolve()
    (folder / LOCKS).mkdir(parents=True)
    with open_study(f"sqlite:///{folder}/study.db", "shared", ["max"]) as study:
        given = study.ask().suggest_float("optimizer.lr", 1e-3, 3e-2, log=True)
    with FileLock(folder / LOCKS / "0000"):
        (one,) = searching(*arguments)
    assert [t.state.name for t in trials("shared")] == ["RUNNING", "COMPLETE"]
    (two,) = searching(*arguments)
    assert [t.state.name for t in trials("shared")] == ["COMPLETE", "COMPLETE"]
    assert one != two
    assert read_config(two)["optimizer"]["lr"] == float(f"{given:.4g}")
