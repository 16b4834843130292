"""The rules of the other programs, asked without one: each speaks of its own settings, and of nothing else."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import Configure
from vitlab import nonfinite, program_checks, runs
from vitlab.config.schema import Node
from vitlab.config.view import ConfigView

Rule = Callable[[ConfigView], Iterator[str]]
RULES = [rule for name, rule in vars(program_checks).items() if name.endswith("_problems")]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `run`, as a run leaves it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = Path("run")
    runs.write_config(folder, {"logger": {}})
    (folder / "captures" / "one" / "rank0").mkdir(parents=True)
    (folder / "captures" / "one" / nonfinite.INFO).touch()
    return folder


def test_they_have_nothing_to_say_of_a_training(configure: Configure) -> None:
    read = ConfigView(configure(), set())
    assert len(RULES) >= 6
    assert [problem for rule in RULES for problem in rule(read)] == []


@pytest.mark.parametrize(
    ("rule", "config", "told"),
    [
        ("evaluation", {"run": "gone", "checkpoint": "best"}, "run=gone is not a run folder: it has no config.yaml"),
        ("evaluation", {"run": "run", "checkpoint": "best"}, "checkpoint=best: run/checkpoints has no best.ckpt"),
        ("doctor", {"changes": [], "steps": 0}, "steps=0 must be at least 1"),
        ("doctor", {"changes": [], "workers": [2, -1]}, "workers=[2, -1]: -1 is not a number of processes; use 0 or"),
        ("replay", {"capture": "run", "rank": 0}, "it has no info.json; that run has run/captures/one"),
        ("replay", {"capture": "run/captures/one", "rank": 0}, "capture=run/captures/one has no config.yaml, which"),
        ("sweep_action", {"action": "cancel", "sweep": None, "run": None}, "sweep is not set; cancel takes sweep=NAME"),
    ],
)
@pytest.mark.usefixtures("run")
def test_a_mistake_is_told_with_value_knob_and_remedy(rule: str, config: Node, told: str) -> None:
    (line,) = getattr(program_checks, f"{rule}_problems")(ConfigView(config, set()))
    assert told in line


@pytest.mark.parametrize(
    ("rule", "config", "bad", "told"),
    [
        ("doctor", {"changes": ["num_wrkers"], "steps": 0, "rounds": 0}, "changes", ["steps=0 must", "rounds=0 must"]),
        ("export", {"format": "zip", "tolerance": -1.0, "run": "run"}, "format", ["tolerance=-1.0 must be 0 or more"]),
    ],
)
def test_a_setting_that_is_wrong_already_hides_no_other(rule: str, config: Node, bad: str, told: list[str]) -> None:
    lines = list(getattr(program_checks, f"{rule}_problems")(ConfigView(config, {bad})))
    assert [line.startswith(beginning) for line, beginning in zip(lines, told, strict=True)] == [True] * len(told)
