"""A program: what it is called, what it runs, and how all that is wrong with its settings is shown."""

from vitlab.cli.program import Program, message
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
