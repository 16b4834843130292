"""Mistakes in the settings of `sweep.py`, and in the choice of a launcher, are reported with value, knob and remedy."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

import train
from vitlab.cli.preflight import preflight
from vitlab.config.schema import ConfigView, Node
from vitlab.config.signatures import defaults
from vitlab.jobs.compose import CONF, compose
from vitlab.sweeps import checks

LOCAL, SLURM = (f"{checks.OURS}.{kind}Launcher" for kind in ("Local", "Slurm"))


@pytest.fixture(autouse=True)
def programs(slurm_programs: Path) -> Path:
    return slurm_programs


def test_a_sweep_that_is_not_named_is_reported() -> None:
    (line,) = checks.sweep_action_problems(ConfigView({"action": "cancel", "sweep": None, "run": None}, set()))
    assert line.startswith("sweep is not set; cancel takes sweep=NAME")


def launcher(target: str, **settings: Any) -> Node:
    return {**defaults(target), **settings}


@pytest.mark.parametrize(("target", "elsewhere"), [(LOCAL, False), (SLURM, True)])
def test_our_launchers_have_no_problem_and_are_local_or_remote(target: str, elsewhere: bool) -> None:
    assert checks.launcher_problems(launcher(target), sweep=True) == ([], elsewhere)


def test_hydras_own_launcher_is_for_runs_and_sweeps() -> None:
    for sweep in (False, True):
        assert checks.launcher_problems({"_target_": checks.BASIC}, sweep=sweep) == ([], False)


@pytest.mark.parametrize(
    ("launcher", "sweep", "problem"),
    [
        (launcher(LOCAL), False, "hydra.launcher=LocalLauncher starts a sweep's jobs, and this is one run; add -m"),
        (launcher(LOCAL, jobs=0), True, "hydra.launcher.jobs=0 must be at least 1"),
        (launcher(LOCAL, jobs="all"), True, "hydra.launcher.jobs=all is not an int or null"),
        (launcher(LOCAL, jbos=2), True, "hydra.launcher.jbos=2: there is no such setting; did you mean 'jobs'?"),
        (launcher(SLURM, timeout_min=-5), True, "hydra.launcher.timeout_min=-5 must be at least 1"),
        (None, True, "hydra.launcher=null is not a mapping"),
    ],
)
def test_a_wrong_setting_is_reported(launcher: Any, sweep: bool, problem: str) -> None:
    assert checks.launcher_problems(launcher, sweep=sweep)[0] == [problem]


def test_a_missing_package_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    problems = checks.launcher_problems(launcher(SLURM), sweep=True)[0]
    assert problems == ["hydra/launcher=slurm is not installed: pip install submitit"]


def test_slurm_without_its_programs_is_reported(programs: Path) -> None:
    for name, absent in (("srun", "no srun"), ("sbatch", "no sbatch and no srun")):
        (programs / name).unlink()
        (line,) = checks.launcher_problems(launcher(SLURM), sweep=True)[0]
        assert line.startswith(f"hydra/launcher=slurm: this machine has {absent}; start the sweep on a login node")
        assert checks.launcher_problems(launcher(SLURM, cluster="local"), sweep=True)[0] == []


LR = "optimizer.lr=tag(log,interval(1e-4,1e-2))"
Found = Callable[..., list[str]]


def compose_sweeper(*overrides: str) -> Node:
    """A sweeper's node as Hydra composes it."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        node: Any = OmegaConf.to_container(compose("train", list(overrides)).hydra.sweeper)
    return node  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def node() -> Node:
    return compose_sweeper("hydra/sweeper=optuna")


def found(node: Node, *lines: str) -> list[str]:
    """The problems of a sweeper's node and a command line."""
    _, problems = checks.problems(node, lines or [LR], {"objective": "val/acc", "data": {}}, None)
    return problems


@pytest.mark.parametrize("sweeper", ["optuna", "random", "asha"])
def test_the_searches_that_are_offered_have_no_problem(sweeper: str) -> None:
    assert found(compose_sweeper(f"hydra/sweeper={sweeper}")) == []


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "nsga2"])
def test_each_sampler_has_no_problem_and_may_have_several_objectives(sampler: str) -> None:
    node = compose_sweeper("hydra/sweeper=optuna", f"hydra/sweeper/sampler={sampler}", "hydra/sweeper/pruner=none")
    objectives = {"val/acc": "max", "images_per_second": "max"}
    assert found({**node, "objectives": objectives}, "seed=1,2") == []


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband", "none"])
def test_each_pruner_has_no_problem(pruner: str) -> None:
    assert found(compose_sweeper("hydra/sweeper=optuna", f"hydra/sweeper/pruner={pruner}")) == []


def test_everything_wrong_with_a_search_is_reported_together(node: Node) -> None:
    objectives = {"val/ac": "max", "test/acc": "max", "val/loss": "down"}
    wrong = {"n_trials": 0, "n_jobs": 0, "objectives": objectives, "storage": "searches.db"}
    assert found({**node, **wrong}) == [
        "hydra.sweeper.n_trials=0 must be at least 1",
        "hydra.sweeper.n_jobs=0 must be at least 1",
        "hydra.sweeper.objectives.val/ac is not measured; did you mean 'val/acc' or 'val/acc5'? "
        "(of val/acc, val/acc5, val/loss, seconds, images_per_second, parameters)",
        "hydra.sweeper.objectives.test/acc: the test split can't test what was chosen by it; use val/",
        "hydra.sweeper.objectives.val/loss=down is not a direction; use max or min",
        "hydra.sweeper.pruner: Optuna prunes by one objective, and there are 3; add hydra/sweeper/pruner=none",
        "hydra.sweeper.storage=... has another form than sqlite:///FILE or postgresql://USER@HOST/DATABASE: each run's "
        "folder would show a password or other options; put them into ~/.pgpass or the variable PGPASSWORD",
    ]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("n_trials", "ten", "hydra.sweeper.n_trials=ten is not an int"),
        ("n_trials", None, "hydra.sweeper.n_trials=null is not an int"),
        ("n_trial", 3, "hydra.sweeper.n_trial=3: there is no such setting; did you mean 'n_trials'"),
        ("objectives", {"seconds": "min"}, "hydra.sweeper.pruner: seconds isn't known while a trial trains"),
        ("sampler", {}, "hydra.sweeper.sampler is not set, and has no default"),
        ("sampler._target_", "optuna.samplers.BruteForceSampler", "can't be resumed; use hydra/sweeper=grid"),
        ("sampler._target_", "optuna.samplers.TPESampeler", "has no 'TPESampeler'; did you mean 'TPESampler'"),
        ("pruner.n_startup_trials", "many", "hydra.sweeper.pruner.n_startup_trials=many is not an int"),
        ("sampler.sede", 1, "hydra.sweeper.sampler.sede=1: there is no such setting; did you mean 'seed'?"),
        ("pruner.n_startup_trials", -1, "hydra.sweeper.pruner: Number of startup trials cannot be negative"),
    ],
)
def test_a_mistake_in_a_search_is_reported(node: Node, path: str, value: object, words: str) -> None:
    wrong = copy.deepcopy(node)
    *parents, key = path.split(".")
    (wrong[parents[0]] if parents else wrong)[key] = value
    if path.startswith("sampler._target_"):
        wrong["sampler"] = {"_target_": value}
    (problem,) = found(wrong)
    assert words in problem


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("optimizer.lr=1e-3", "hydra/sweeper=optuna has nothing to search"),
        ("optimizer.lr=interval(3,1)", "optimizer.lr=interval(3,1) is empty or infinite"),
    ],
)
def test_a_mistake_in_a_space_is_reported(node: Node, line: str, words: str) -> None:
    (problem,) = found(node, line)
    assert words in problem


def test_a_search_without_validation_is_refused(node: Node) -> None:
    config = {"objective": "val/acc", "data": {"val_fraction": 0}}
    _, (problem,) = checks.problems(node, ["optimizer.lr=interval(0.1,1)"], config, None)
    assert "a search compares validation scores, and data.val_fraction=0 holds out no split" in problem


def test_a_password_is_refused_and_not_repeated(node: Node) -> None:
    (problem,) = found({**node, "storage": "postgresql://me:s3cret@host/searches"})
    assert "would show a password" in problem
    assert "~/.pgpass" in problem
    assert "s3cret" not in problem
    (problem,) = found({**node, "storage": "postgresql://me@127.0.0.1:1/searches"})
    assert problem.startswith("hydra.sweeper.storage=postgresql://me@127.0.0.1:1/searches can't be reached: ")


@pytest.mark.parametrize(
    "storage",
    [
        *(
            f"postgresql://me:{word}@host/db"
            for word in ("s3cret", "s3#cret", "s3/cret", "s3@cret", "s3?cret", "s3%40cret")
        ),
        *("postgresql://:s3cret@host/db", "postgresql://me:s3cret@host:port/db", "POSTGRESQL://me:s3cret@host/db"),
        *("postgresql://host/db?user=me&password=s3cret", "postgresql://host/db?pass%77ord=s3cret"),
        *("mysql+pymysql://host/db?passwd=s3cret", "mssql+pyodbc://?odbc_connect=PWD%3Ds3cret"),
        *("postgresql:///db?dsn=password=s3cret", "sqlite:///a.db?key=s3cret", "host=h password=s3cret"),
    ],
)
def test_a_password_in_any_form_is_refused_and_not_repeated(node: Node, storage: str) -> None:
    (problem,) = found({**node, "storage": storage})
    assert "would show a password or other options" in problem
    assert "cret" not in problem
    assert "s3" not in problem


@pytest.mark.parametrize(
    "storage",
    [
        *("postgresql://me@host/db", "postgresql://me%40here@host:5432/db?sslmode=require", "postgresql://me@[::1]/db"),
        *("sqlite:///runs/a@b#c.db", "sqlite:////a/b c.db", "postgresql+psycopg2:///db"),
    ],
)
def test_a_database_without_a_password_is_none(storage: str) -> None:
    assert checks.url_problem(storage) is None


def test_a_missing_optuna_is_reported_with_the_command_that_installs_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)  # as Python marks a missing module
    (problem,) = found(node)
    assert problem.startswith("hydra/sweeper=optuna needs Optuna, which is not installed: pip install 'optuna>=")


# ------------------------------------------------------------------------------------------------ the command line


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Found:
    """Arguments -> the problems for which `train.py` refuses them."""
    monkeypatch.chdir(tmp_path)

    def problems(*argv: str) -> list[str]:
        with pytest.raises(SystemExit):
            preflight(train.main, [*argv])
        return [line.removeprefix("  - ") for line in capsys.readouterr().err.splitlines()[1:]]

    return problems


def test_the_ends_of_all_ranges_are_checked_as_settings(refused: Found) -> None:
    space = ["optimizer.lr=interval(-1,1)", "model.dmi=int(interval(3,4))"]
    assert sorted(refused("-m", "hydra/sweeper=optuna", *space)) == [
        "model.dmi=3: there is no such setting; did you mean 'dim'?",
        "model.dmi=4: there is no such setting; did you mean 'dim'?",
        "optimizer.lr=-1.0 must be above 0",
    ]


def test_an_experiment_chooses_its_sweeper_and_what_it_searches_is_checked(refused: Found, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /hydra/sweeper: random\nhydra:\n  mode: MULTIRUN\n  sweeper:\n"
        "    params:\n      schedule: choice(reciprocal_sqrt)\n      schedule.cooldown_step: choice(1, 2)\n"
    )
    argv = [f"--config-dir={tmp_path / 'mine'}", "experiment=mine", "trainer.accelerator=cpu"]
    assert refused(*argv) == [
        "schedule.cooldown_step=1: there is no such setting; did you mean 'cooldown_steps' or 'total_steps'?",
        "schedule.cooldown_step=2: there is no such setting; did you mean 'cooldown_steps' or 'total_steps'?",
    ]
    (folder / "mine.yaml").write_text((folder / "mine.yaml").read_text().replace("cooldown_step:", "cooldown_steps:"))
    passed = preflight(train.main, argv)
    assert passed[:3] == [argv[0], "hydra/sweeper=random", passed[2]]
    assert passed[2].startswith("sweep=digits-schedule-")
    one = [*argv, "schedule=constant", "hydra.mode=RUN", "sweep=null"]
    passed = preflight(train.main, one)
    assert passed == [argv[0], "hydra/sweeper=random", *one[1:]], "one of its trials alone"


def test_a_password_is_refused_also_where_nothing_is_searched(refused: Found) -> None:
    """Each run saves `hydra.sweeper` in its folder."""
    (problem,) = refused("hydra/sweeper=optuna", "hydra.sweeper.storage='sqlite:///a.db?key=s3cret'")
    assert "would show a password" in problem
    assert "s3cret" not in problem
