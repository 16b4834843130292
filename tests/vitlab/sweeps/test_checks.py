"""Mistakes in the settings of `sweep.py`, and in the choice of a launcher, are reported with value, knob and remedy."""

from pathlib import Path
from typing import Any

import pytest

from vitlab.config.schema import Node
from vitlab.config.signatures import defaults
from vitlab.config.view import ConfigView
from vitlab.sweeps import checks

LOCAL, SLURM = (f"{checks.OURS}.{kind}Launcher" for kind in ("Local", "Slurm"))


@pytest.fixture(autouse=True)
def programs(slurm_programs: Path) -> Path:
    return slurm_programs


def test_a_sweep_that_is_not_named_is_reported() -> None:
    (line,) = checks.sweep_action_problems(ConfigView({"action": "cancel", "sweep": None, "run": None}, set()))
    assert line.startswith("sweep is not set; cancel takes sweep=NAME")


def node(target: str, **settings: Any) -> Node:
    return {**defaults(target), **settings}


@pytest.mark.parametrize(("target", "elsewhere"), [(LOCAL, False), (SLURM, True)])
def test_our_launchers_have_no_problem_and_are_local_or_remote(target: str, elsewhere: bool) -> None:
    assert checks.launcher_problems(node(target), sweep=True) == ([], elsewhere)


def test_hydras_own_launcher_is_for_runs_and_sweeps() -> None:
    for sweep in (False, True):
        assert checks.launcher_problems({"_target_": checks.BASIC}, sweep=sweep) == ([], False)


@pytest.mark.parametrize(
    ("launcher", "sweep", "problem"),
    [
        (node(LOCAL), False, "hydra.launcher=LocalLauncher starts a sweep's jobs, and this is one run; add -m"),
        (node(LOCAL, jobs=0), True, "hydra.launcher.jobs=0 must be at least 1"),
        (node(LOCAL, jobs="all"), True, "hydra.launcher.jobs=all is not an int or null"),
        (node(LOCAL, jbos=2), True, "hydra.launcher.jbos=2: there is no such setting; did you mean 'jobs'?"),
        (node(SLURM, timeout_min=-5), True, "hydra.launcher.timeout_min=-5 must be at least 1"),
        (None, True, "hydra.launcher=null is not a mapping"),
    ],
)
def test_a_wrong_setting_is_reported(launcher: Any, sweep: bool, problem: str) -> None:
    assert checks.launcher_problems(launcher, sweep=sweep)[0] == [problem]


def test_a_missing_package_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    problems = checks.launcher_problems(node(SLURM), sweep=True)[0]
    assert problems == ["hydra/launcher=slurm is not installed: pip install submitit"]


def test_slurm_without_its_programs_is_reported(programs: Path) -> None:
    for name, absent in (("srun", "no srun"), ("sbatch", "no sbatch and no srun")):
        (programs / name).unlink()
        (line,) = checks.launcher_problems(node(SLURM), sweep=True)[0]
        assert line.startswith(f"hydra/launcher=slurm: this machine has {absent}; start the sweep on a login node")
        assert checks.launcher_problems(node(SLURM, cluster="local"), sweep=True)[0] == []
