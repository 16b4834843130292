"""A program: what it is called, what it runs, and how all that is wrong with its settings is shown."""

import inspect
from typing import Any

from vitlab.cli.program import Program, message, with_settings_of
from vitlab.config.docstrings import parse_arguments
from vitlab.config.schema import Node, call_problems
from vitlab.config.view import ConfigView


def test_a_program_without_a_rule_of_its_own_has_nothing_to_say() -> None:
    program = Program("count", lambda **settings: settings)
    assert list(program.check(ConfigView({"a": 1}, set()))) == []


def test_problems_are_shown_in_a_line_each() -> None:
    assert message("count", ["a=1 is wrong"]) == (
        "count: 1 problem in the configuration; nothing was started.\n  - a=1 is wrong"
    )
    assert message("count", ["a", "b"]).startswith("count: 2 problems in")


def test_a_setting_s_control_characters_stay_off_the_terminal() -> None:
    assert message("train", ["data_dir=\x1b[2J is not a folder"]).endswith("\n  - data_dir=\\x1b[2J is not a folder")


def test_a_program_may_have_another_program_s_settings() -> None:
    def train(*, seed: int, name: str, resume: bool) -> Node:
        """Train.

        Args:
            seed: Of the weights,
                and of the order.
            name: Of the run.
            resume: Whether it goes on.
        """
        return {}

    @with_settings_of(Program("train", train), without=["resume"])
    def measure(*, steps: int, name: str | None, **training: Any) -> Node:
        """Measure.

        Args:
            steps: How many.
            name: Of the report.
        """
        return {"steps": steps, "name": name, **training}

    assert [*inspect.signature(measure).parameters] == ["steps", "name", "seed"]
    lines = parse_arguments(inspect.getdoc(measure) or "")
    assert lines == {"steps": "How many.", "name": "Of the report.", "seed": "Of the weights, and of the order."}
    assert call_problems("", {"steps": 1, "name": None, "seed": "x", "resume": True}, measure) == [
        "seed=x is not an int",
        "resume=true: there is no such setting",
    ]
    assert measure(steps=1, name=None, seed=2) == {"steps": 1, "name": None, "seed": 2}
    assert [*inspect.signature(train).parameters] == ["seed", "name", "resume"], "as before"
